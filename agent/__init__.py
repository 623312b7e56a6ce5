"""The agent: a light daemon that asks for work and moves bytes, and a training process that trains one block."""
