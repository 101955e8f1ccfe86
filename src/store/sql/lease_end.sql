DELETE FROM leases WHERE image = ?
