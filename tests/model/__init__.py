"""Every interleaving of two agents, two blocks and two coordinators: the real services on a database in memory, state by state."""
