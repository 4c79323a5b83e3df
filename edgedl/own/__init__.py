"""Networks of one's own: whatever a person has, as a network like those of recipes."""
