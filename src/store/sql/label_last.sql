SELECT * FROM labels WHERE image = ? AND tag = ? ORDER BY revision DESC LIMIT 1
