SELECT image, version, asked, size_bytes, mtime_s, scores FROM scores WHERE model = ?1 AND (?2 IS NULL OR image = ?2)
