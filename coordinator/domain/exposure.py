"""The exposure budget: how many different blocks of a run one agent may ever receive exact, and what a schedule can make of it.

Blocks that everybody gets exact (those trained along, and what the policy leaves exact) are *common*. What is left of the budget,
the *room*, is for visited blocks. Block i may be planned for a *team* of t agents in a row: i mod n, i + 1 mod n, …, i + t - 1 mod n.
Then agent a meets the blocks whose i is one of t residues mod n, which are at most t·⌊B/n⌋ + min(t, B mod n) of B blocks.
"""

from collections.abc import Collection, Sequence, Set

from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.sizes import counted


class ExposureBudgetTooSmall(Invalid):
    """`exposure.max_exact_blocks` does not let the run's blocks be trained."""

    code = "exposure_budget_too_small"


def may_see(seen: Set[str], coming: Set[str], limit: int | None) -> bool:
    """Whether an agent that has got the blocks `seen` exact may get those of `coming` too. What it has already costs nothing."""
    return limit is None or coming <= seen or len(seen | coming) <= limit


def common_blocks(spec: RunFile, names: Collection[str], frozen_exact: Collection[str]) -> set[str]:
    """The blocks of a run (of all its `names`) that every agent gets exact, whatever it trains.

    `frozen_exact` are those that the policy leaves exact when they are frozen. Under `hybrid` that changes from round to round,
    and may be any block.
    """
    if spec.compression.policy == "hybrid":
        return set(names)
    return {*spec.schedule.always, *frozen_exact}


def members_met(blocks: int, agents: int, team: int) -> int:
    """The most of `blocks` visited blocks that one of `agents` agents meets when each block has a team of `team` agents."""
    whole, rest = divmod(blocks, agents)
    return team * whole + min(team, rest)


def team_size(blocks: int, agents: int, room: int | None) -> int:
    """How many agents each block may be planned for, so that none meets more than `room` blocks; `agents` if there is no limit.

    Raises `ExposureBudgetTooSmall` where not even one agent a block is within the budget.
    """
    if room is None:
        return agents
    for team in range(agents, 0, -1):
        if members_met(blocks, agents, team) <= room:
            return team
    raise ExposureBudgetTooSmall(
        f"{blocks} visited blocks are more than {agents} agents may see at {room} each", blocks=blocks, agents=agents
    )


def room_of(spec: RunFile, common: Collection[str]) -> int | None:
    """Visited blocks that one agent may meet beside the common ones; None: any number."""
    limit = spec.exposure.max_exact_blocks
    return None if limit is None else limit - len(set(common))


def check_exposure(spec: RunFile, visited: Sequence[str], common: Set[str], agents: int | None = None) -> None:
    """Raises `ExposureBudgetTooSmall`, with the numbers, for a budget with which the run cannot be trained.

    Without `agents` (before the start) the least that any number of agents needs: one visited block beside the common ones.
    """
    room, limit = room_of(spec, common), spec.exposure.max_exact_blocks
    if room is None or limit is None:
        return
    own = [name for name in visited if name not in common]
    if room < (1 if own else 0):
        why = {
            "none": "under `compression.policy: none` every agent gets all blocks exact",
            "hybrid": "under `compression.policy: hybrid` any block may come exact",
        }.get(spec.compression.policy, f"every visit brings {', '.join(sorted(common)) or 'no common block'}")
        raise ExposureBudgetTooSmall(
            f"exposure.max_exact_blocks is {limit}, but {why}{', and the visited block' if own else ''}: "
            f"{counted(len(common) + bool(own), 'block')} at least",
            limit=limit, common=len(common), visited=len(own),
        )  # fmt: skip
    if agents is not None and agents * room < len(own):
        raise ExposureBudgetTooSmall(
            f"exposure.max_exact_blocks is {limit}; {len(common)} of them are common, so {agents} agents may see {agents} × {room} = "
            f"{agents * room} visited blocks, but the run visits {len(own)}: enrol {counted(-(-len(own) // room), 'agent')}, or allow "
            f"{counted(len(common) + -(-len(own) // agents), 'block')}",
            limit=limit, common=len(common), visited=len(own), agents=agents,
        )  # fmt: skip
