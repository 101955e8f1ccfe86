SELECT seq, image, patient, part, reason, actor, created_ms FROM current_splits ORDER BY seq
