DELETE FROM row_seals WHERE (tbl, key) IN (SELECT tbl, key FROM temp.unsealed)
