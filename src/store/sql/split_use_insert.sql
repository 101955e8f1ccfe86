INSERT INTO split_uses (image, used_for, created_ms) VALUES (?, ?, ?) ON CONFLICT (image) DO NOTHING
