SELECT json_group_array(json_array(image, last_ms))
FROM (SELECT image, max(created_ms) AS last_ms FROM servings WHERE strategy = ? GROUP BY image)
