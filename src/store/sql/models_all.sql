SELECT m.*, l.version IS NOT NULL AS live, coalesce(l.pinned, 0) AS pinned
FROM models AS m LEFT JOIN live_models AS l ON l.name = m.name AND l.version = m.version
ORDER BY m.name, m.version
