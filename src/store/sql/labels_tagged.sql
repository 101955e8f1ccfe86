SELECT l.* FROM current_labels AS l JOIN images AS i ON i.id = l.image
WHERE i.state = 'present' AND l.tag = ? ORDER BY i.seq
