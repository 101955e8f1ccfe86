SELECT DISTINCT tbl FROM temp.unsealed
