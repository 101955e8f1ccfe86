SELECT * FROM rounds WHERE job = ?
