SELECT * FROM current_labels WHERE image = ? ORDER BY position
