UPDATE jobs SET state = 'STOPPED', error = ?1, finished_ms = ?2, fence = fence + 1, worker = NULL, lease_until_ms = NULL
WHERE id = ?3 AND state IN ('SUBMITTED', 'RUNNING')
