"""What of the owner's policy can be judged only where the rows are counted and the tensors are known."""

from collections.abc import Iterable, Mapping, Sequence

from fedcybgd.agent.messages import Bounds
from fedcybgd.agent.training.errors import PolicyBroken
from fedcybgd.shared.contract.block_names import touches

MOST_USES = 1 << 27
"""Rows of all steps together, each as often as it is used: their order alone takes a gigabyte."""


def check_rows(bounds: Bounds, steps: int, batch_size: int, available: int) -> None:
    """Raises `PolicyBroken` before an order of so many steps is made."""
    if steps > bounds.steps:
        raise PolicyBroken(f"most.steps: {steps} steps; the owner's policy allows {bounds.steps}")
    if (uses := steps * min(batch_size, available)) > MOST_USES:
        raise PolicyBroken(
            f"most.steps: {steps} steps of {batch_size} rows are {uses} rows; an agent takes {MOST_USES} a visit at the most"
        )


def check_used(bounds: Bounds, order: Iterable[Sequence[int]]) -> None:
    """Raises `PolicyBroken` for a visit that would use too few different rows: its delta would say too much of each."""
    used = len({row for batch in order for row in batch})
    if used < bounds.rows:
        raise PolicyBroken(f"least.rows: {used} different rows; the owner's policy allows no visit with less than {bounds.rows}")


def check_tensors(bounds: Bounds, trained: Mapping[str, Iterable[str]], home_of: Mapping[str, str]) -> None:
    """Hold what the shards of the trained blocks really have against the policy: the name of a block is only what a coordinator calls it.

    `trained` is block → tensors, `home_of` tensor → block by the model itself.
    """
    for block, tensors in trained.items():
        for name in tensors:
            real = home_of.get(name, block)
            if found := next((pattern for pattern in bounds.never if touches(pattern, real)), None):
                raise PolicyBroken(
                    f"work.never_train: {name}, which is of block {real}, would be trained as {block}; "
                    f"the owner's policy allows no block that {found} means to be trained"
                )
