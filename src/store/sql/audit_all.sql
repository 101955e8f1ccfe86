SELECT created_ms, actor, action, subject, detail, hash FROM audit ORDER BY seq
