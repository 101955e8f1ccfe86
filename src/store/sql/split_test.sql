SELECT image FROM current_splits WHERE part = 'test'
