SELECT count(*) FROM jobs WHERE kind = ? AND state = 'SUBMITTED'
