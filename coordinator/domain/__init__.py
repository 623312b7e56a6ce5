"""The rules: pure functions and tables. No web, no database, no torch, no clock; now and seeds are arguments."""
