INSERT INTO splits (image, patient, part, reason, actor, created_ms) VALUES (?, ?, ?, ?, ?, ?)
