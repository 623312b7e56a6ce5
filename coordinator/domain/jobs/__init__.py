"""Heavy work outside the web process: its kinds, and what each takes and gives."""
