SELECT l.image, l.tag, l.image_sha256 AS drawn_on, i.sha256 AS image_now
FROM current_labels AS l JOIN images AS i ON i.id = l.image
WHERE i.state = 'present' AND i.sha256 IS NOT l.image_sha256
    AND NOT EXISTS (SELECT 1 FROM label_confirmations AS c WHERE c.label = l.seq AND c.image_sha256 = i.sha256)
