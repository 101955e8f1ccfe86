SELECT id, source, file, state, size_bytes, mtime_ms FROM images
