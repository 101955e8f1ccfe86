SELECT * FROM labels WHERE image = ? AND tag = ? ORDER BY revision
