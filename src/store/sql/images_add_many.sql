INSERT INTO images (id, ext, source, file, state, size_bytes, mtime_ms, info)
SELECT value ->> 0, value ->> 1, 'study', value ->> 2, 'present', value ->> 3, value ->> 4, value ->> 5 FROM json_each(?)
WHERE true
ON CONFLICT (id) DO NOTHING
