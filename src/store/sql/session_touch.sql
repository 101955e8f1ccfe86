UPDATE sessions SET last_access_ms = ? WHERE id = ?
