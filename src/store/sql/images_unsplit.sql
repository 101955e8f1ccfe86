SELECT EXISTS (
    SELECT 1 FROM images AS i WHERE i.state = 'present' AND NOT EXISTS (SELECT 1 FROM splits AS s WHERE s.image = i.id))
