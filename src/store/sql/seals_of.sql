SELECT key, seal FROM row_seals WHERE tbl = ?
