"""The command line: one file a command group, imports inside the functions."""
