DELETE FROM temp.unsealed
