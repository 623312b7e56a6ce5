"""What is written down: jobs, ledgers, events, keys."""
