"""Builds the database, step by step (Alembic)."""
