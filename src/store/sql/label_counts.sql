SELECT l.tag, count(*) FROM current_labels AS l JOIN images AS i ON i.id = l.image
WHERE i.state = 'present' GROUP BY l.tag ORDER BY min(l.position)
