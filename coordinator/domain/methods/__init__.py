"""What differs between federated methods: which seats a round has, and what becomes of its deltas."""
