INSERT INTO audit (created_ms, actor, action, subject, detail, hash) VALUES (?, ?, ?, ?, ?, ?)
