INSERT INTO live_models (name, version, pinned) VALUES (?, ?, ?)
ON CONFLICT (name) DO UPDATE SET version = excluded.version, pinned = excluded.pinned
