UPDATE jobs SET lease_until_ms = ?1, progress = coalesce(?2, progress), details = ?3
WHERE id = ?4 AND fence = ?5 AND state = 'RUNNING'
