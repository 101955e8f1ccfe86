UPDATE jobs SET state = 'SUBMITTED', fence = fence + 1, attempts = max(attempts - 1, 0), worker = NULL, lease_until_ms = NULL
WHERE state = 'RUNNING'
