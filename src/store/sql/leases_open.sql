SELECT * FROM leases WHERE until_ms > ? ORDER BY until_ms, image
