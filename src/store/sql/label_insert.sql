INSERT INTO labels (image, tag, revision, parent, position, deleted, ext, sha256, normalised_sha256, size_bytes,
    author, origin, params, extra, annotated, image_sha256, created_ms, idempotency_key, provenance, geometry_sha256)
VALUES (?, ?, ?, ?, coalesce(?, (SELECT coalesce(max(seq), 0) + 1 FROM labels)), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING *
