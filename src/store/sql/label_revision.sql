SELECT * FROM labels WHERE image = ? AND tag = ? AND revision = ?
