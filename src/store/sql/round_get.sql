SELECT * FROM rounds WHERE number = ?
