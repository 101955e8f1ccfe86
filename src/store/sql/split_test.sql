SELECT json_group_array(image) FROM current_splits WHERE part = 'test'
