SELECT * FROM leases WHERE image = ? AND until_ms > ?
