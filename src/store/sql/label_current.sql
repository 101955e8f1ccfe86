SELECT * FROM current_labels WHERE image = ? AND tag = ?
