"""The site cache: one machine of a site fetches a shard once for all agents there. The agent's side of it, and the cache itself."""
