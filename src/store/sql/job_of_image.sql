SELECT * FROM jobs WHERE kind = 'infer' AND json_extract(payload, '$.image.study.id') = ?
    AND state = 'DONE' ORDER BY seq DESC LIMIT 32
