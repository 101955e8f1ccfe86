SELECT sha256 AS name, size_bytes FROM labels
UNION SELECT normalised_sha256, NULL FROM labels
UNION SELECT file, size_bytes FROM images WHERE source = 'blob' AND state <> 'deleted'
ORDER BY 1
