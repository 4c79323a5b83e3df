"""What is asked of a file beside latency: load, cold starts, heat, energy, the way from record to decision."""
