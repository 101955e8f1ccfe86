SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'labels'), 0)
