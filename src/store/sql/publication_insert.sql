INSERT INTO publications (name, version, replaced, rollback, actor, created_ms)
SELECT ?1, ?2, (SELECT version FROM live_models WHERE name = ?1), ?3, ?4, ?5
WHERE NOT EXISTS (SELECT 1 FROM live_models WHERE name = ?1 AND version = ?2)
