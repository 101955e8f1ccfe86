INSERT INTO leases (image, client, strategy, taken_ms, until_ms) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (image) DO UPDATE SET client = excluded.client, strategy = excluded.strategy,
    taken_ms = excluded.taken_ms, until_ms = excluded.until_ms
