"""What is kept in order: garbage, damaged and missing blobs, leases after an absence, agents that say no."""
