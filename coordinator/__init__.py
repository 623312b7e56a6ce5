"""The coordinator: keeps runs, rounds and assignments, serves shards, judges deltas and applies them."""
