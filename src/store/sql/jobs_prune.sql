DELETE FROM jobs WHERE kind = 'infer' AND finished_ms < ?
