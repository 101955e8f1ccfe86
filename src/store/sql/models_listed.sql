-- Columns that every release had: a check reads a data folder before it is brought up to date.
SELECT m.name, m.version, m.sha256, l.version IS NOT NULL AS live
FROM models AS m LEFT JOIN live_models AS l ON l.name = m.name AND l.version = m.version
ORDER BY m.name, m.version
