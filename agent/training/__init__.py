"""Training, with torch and without any network."""
