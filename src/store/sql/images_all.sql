SELECT * FROM images ORDER BY seq
