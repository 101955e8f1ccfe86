SELECT sha256 FROM labels
UNION SELECT normalised_sha256 FROM labels
UNION SELECT file FROM images WHERE source = 'blob' AND state <> 'deleted'
ORDER BY 1
