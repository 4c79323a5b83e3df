"""What each layer of a network costs, how it takes compression alone, and whose time an operator takes."""
