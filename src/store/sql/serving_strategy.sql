SELECT strategy FROM servings ORDER BY seq DESC LIMIT 1
