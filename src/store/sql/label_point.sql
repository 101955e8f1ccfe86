INSERT INTO label_pointers (image, tag, revision) VALUES (?, ?, ?)
ON CONFLICT (image, tag) DO UPDATE SET revision = excluded.revision
