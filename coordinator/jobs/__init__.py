"""Where engine functions run: local worker processes by default."""
