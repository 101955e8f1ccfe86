SELECT json_group_array(json_array(l.image, json(l.annotated)))
FROM current_labels AS l JOIN images AS i ON i.id = l.image WHERE i.state = 'present' AND l.tag = ?
