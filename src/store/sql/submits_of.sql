SELECT author, provenance, created_ms FROM labels WHERE tag = ? AND deleted = 0 ORDER BY seq
