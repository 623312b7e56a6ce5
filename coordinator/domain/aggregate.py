"""How the weighted deltas of a block become its change."""

from typing import Literal

Aggregate = Literal["sum"]
"""sum: each times its weight, added up one after another in the order of seats."""
