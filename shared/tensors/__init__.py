"""Tensors where both sides must get the same bits. Loads torch."""
