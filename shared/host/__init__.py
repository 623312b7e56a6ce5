"""This machine and this process: memory, terminal, addresses. No torch."""
