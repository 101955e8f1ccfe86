SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'audit'), 0)
