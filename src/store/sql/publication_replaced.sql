SELECT replaced FROM publications WHERE name = ? AND version = ? AND rollback = 0 ORDER BY seq DESC LIMIT 1
