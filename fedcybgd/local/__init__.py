"""A coordinator and agents in processes of their own, on this machine, started and ended by a program."""
