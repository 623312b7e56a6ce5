"""The tables, a file a noun."""
