INSERT INTO images (id, ext, source, file, state, size_bytes, mtime_ms, sha256, geometry, info)
VALUES (?, ?, ?, ?, 'present', ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    ext = excluded.ext, source = excluded.source, file = excluded.file, state = 'present', size_bytes = excluded.size_bytes,
    mtime_ms = excluded.mtime_ms, sha256 = excluded.sha256, geometry = excluded.geometry, info = excluded.info
