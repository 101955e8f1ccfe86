SELECT CASE
    WHEN EXISTS (SELECT 1 FROM jobs WHERE state = 'RUNNING' AND worker = ?1 AND lease_until_ms < ?2) THEN 'lost'
    WHEN EXISTS (SELECT 1 FROM jobs WHERE state = 'RUNNING' AND worker = ?1) THEN 'works'
    WHEN EXISTS (SELECT 1 FROM jobs WHERE state = 'SUBMITTED') THEN 'waits'
    ELSE 'works' END
