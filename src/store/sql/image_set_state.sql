UPDATE images SET state = ? WHERE id = ?
