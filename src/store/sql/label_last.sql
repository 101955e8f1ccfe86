SELECT max(revision) FROM labels WHERE image = ? AND tag = ?
