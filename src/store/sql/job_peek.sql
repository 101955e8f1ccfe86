SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'SUBMITTED' AND kind IN (SELECT value FROM json_each(?)))
