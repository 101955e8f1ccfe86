UPDATE jobs SET lease_until_ms = 0 WHERE state = 'RUNNING' AND worker = ?1
