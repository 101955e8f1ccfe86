UPDATE jobs SET state = 'SUBMITTED', fence = fence + 1, worker = NULL, lease_until_ms = NULL
WHERE state = 'RUNNING' AND lease_until_ms < ?
