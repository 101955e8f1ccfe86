UPDATE rounds SET started_ms = ?, plan = ? WHERE number = ? AND plan IS NULL
