"""Who the agents are, whether they are there, and for which runs they are ready."""
