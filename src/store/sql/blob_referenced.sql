SELECT EXISTS (SELECT 1 FROM labels WHERE sha256 = ?1 OR normalised_sha256 = ?1)
    OR EXISTS (SELECT 1 FROM images WHERE source = 'blob' AND file = ?1)
