SELECT max(created_ms) FROM servings WHERE image = ? AND client = ?
