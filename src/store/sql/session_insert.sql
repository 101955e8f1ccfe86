INSERT INTO sessions (id, name, image, created_ms, last_access_ms, expiry_s) VALUES (?, ?, ?, ?, ?, ?)
