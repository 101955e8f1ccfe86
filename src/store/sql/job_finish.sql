UPDATE jobs SET state = ?1, result = ?2, error = ?3, finished_ms = ?4, worker = NULL, lease_until_ms = NULL
WHERE id = ?5 AND fence = ?6 AND state = 'RUNNING'
