INSERT INTO label_confirmations (label, image_sha256, author, created_ms) VALUES (?, ?, ?, ?)
ON CONFLICT (label, image_sha256) DO NOTHING
