"""Files on other devices: what is sent, what runs there, and what becomes of the answers."""
