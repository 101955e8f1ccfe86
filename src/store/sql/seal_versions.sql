SELECT coalesce(max(version), 0), group_concat(version) FROM _sqlx_migrations
