SELECT kind, state, count(*), min(created_ms) FROM jobs WHERE state IN ('SUBMITTED', 'RUNNING') GROUP BY kind, state
