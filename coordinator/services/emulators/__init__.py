"""What an agent gets: codecs, shards, costs, fidelity, and what it may see."""
