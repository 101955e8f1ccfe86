SELECT count(*) FROM current_labels AS l JOIN images AS i ON i.id = l.image
WHERE l.tag = ? AND l.seq > ? AND i.state = 'present'
