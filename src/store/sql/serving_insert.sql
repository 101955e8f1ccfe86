INSERT INTO servings (strategy, image, client, created_ms) VALUES (?, ?, ?, ?)
