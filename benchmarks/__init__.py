"""edgedl against the specialists: same trained networks, data and runtimes, each peer in an environment of its own."""
