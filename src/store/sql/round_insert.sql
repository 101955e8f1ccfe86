INSERT INTO rounds (job, model, cause, actor, labels_seq, created_ms)
VALUES (?, ?, ?, ?, (SELECT coalesce(max(seq), 0) FROM labels), ?)
RETURNING number
