SELECT json_group_array(json_array(id, mtime_ms, size_bytes) ORDER BY seq) FROM images WHERE state = 'present'
