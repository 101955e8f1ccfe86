UPDATE models SET state = ?, reason = ? WHERE name = ? AND version = ?
