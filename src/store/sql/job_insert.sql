INSERT INTO jobs (id, kind, priority, state, payload, request, created_ms)
VALUES (?, ?, ?, 'SUBMITTED', ?, ?, ?)
RETURNING *
