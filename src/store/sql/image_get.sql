SELECT * FROM images WHERE id = ?
