UPDATE jobs SET state = 'RUNNING', attempts = attempts + 1, fence = fence + 1, worker = ?1, lease_until_ms = ?2
WHERE seq = (
    SELECT seq FROM jobs WHERE state = 'SUBMITTED' AND kind IN (SELECT value FROM json_each(?3))
    ORDER BY priority DESC, seq LIMIT 1
)
RETURNING *
