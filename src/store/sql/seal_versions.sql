SELECT group_concat(version) FROM _sqlx_migrations
