UPDATE images SET sha256 = ?, geometry = ? WHERE id = ? AND size_bytes = ? AND mtime_ms = ?
