INSERT INTO models (name, version, sha256, weights_sha256, parent, created_ms, metrics, lineage, state, reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
