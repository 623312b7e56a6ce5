"""How a waiting claim learns that there is work."""
