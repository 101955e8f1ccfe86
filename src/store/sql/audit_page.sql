SELECT seq, created_ms, actor, action, subject, detail, hash FROM audit WHERE seq > ? AND created_ms >= ? ORDER BY seq LIMIT ?
