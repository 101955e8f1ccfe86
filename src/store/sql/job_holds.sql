SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ? AND fence = ? AND state = 'RUNNING')
