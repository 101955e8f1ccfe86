SELECT image, max(created_ms) AS created_ms FROM servings WHERE strategy = ? GROUP BY image
