INSERT INTO live_models (name, version) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET version = excluded.version
