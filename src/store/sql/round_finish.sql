UPDATE rounds SET finished_ms = ?, decision = ?, reason = ?, version = ?, comparison = ? WHERE number = ?
