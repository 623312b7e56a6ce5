"""What several tests need: tiny real models, a real PostgreSQL, real coordinators and agents."""
