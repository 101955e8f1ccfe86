UPDATE jobs SET state = 'ERROR', finished_ms = ?1, fence = fence + 1, lease_until_ms = NULL,
    error = 'its worker (' || coalesce(worker, 'unknown') || ') stopped answering, ' || attempts
        || ' times in all; see the worker''s log, then start the job again'
WHERE state = 'RUNNING' AND lease_until_ms < ?1 AND attempts >= ?2
