INSERT INTO row_seals (tbl, key, seal)
SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
ON CONFLICT (tbl, key) DO UPDATE SET seal = excluded.seal
