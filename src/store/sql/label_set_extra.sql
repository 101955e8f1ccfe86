UPDATE labels SET extra = ? WHERE seq = ?
