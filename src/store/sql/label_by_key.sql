SELECT * FROM labels WHERE idempotency_key = ?
