SELECT * FROM sessions WHERE last_access_ms + expiry_s * 1000 < ?
