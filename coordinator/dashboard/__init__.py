"""The admin page: reads through queries, acts through services."""
