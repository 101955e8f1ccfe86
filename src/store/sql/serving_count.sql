SELECT count(*) FROM servings
