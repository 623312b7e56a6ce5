"""Heavy work with torch: one function, one job, digests in and digests out, memory bounded by a block."""
