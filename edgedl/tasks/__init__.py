"""Tasks, one file each: a data set, its loss and its metric."""
