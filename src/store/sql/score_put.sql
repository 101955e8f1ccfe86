INSERT INTO scores (image, model, version, asked, size_bytes, mtime_s, scores, created_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (image, model) DO UPDATE SET
    version = excluded.version, asked = excluded.asked, size_bytes = excluded.size_bytes,
    mtime_s = excluded.mtime_s, scores = excluded.scores, created_ms = excluded.created_ms
