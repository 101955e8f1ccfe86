DELETE FROM row_seals
