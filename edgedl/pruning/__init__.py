"""What hangs together in a network, what it is worth, and how it is cut out."""
