SELECT used_for FROM split_uses WHERE image = ?
