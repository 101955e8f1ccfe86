UPDATE images SET info = ? WHERE id = ?
