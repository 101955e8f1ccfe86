SELECT seal FROM row_seals WHERE tbl = ? AND key = ?
