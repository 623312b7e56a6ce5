"""Input of every kind, made by programs: it is taken, or refused by a stable code, and nothing else ever happens."""
