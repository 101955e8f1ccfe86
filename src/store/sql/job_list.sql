SELECT * FROM jobs WHERE kind = ? ORDER BY seq
