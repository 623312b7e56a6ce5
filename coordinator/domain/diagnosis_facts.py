"""What the diagnosis of a run is made from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedcybgd.coordinator.domain.held_up import Held
from fedcybgd.shared.contract.measured import Score


@dataclass(frozen=True)
class DiagnosisFacts:
    """What is known of a run's last visits; agents are names."""

    losses: Sequence[float] = ()
    """on the calibration rows, from before the first round that is looked at on"""
    scores: Sequence[Score] = ()
    """the oldest first"""
    judged: int = 0
    rejected: Sequence[tuple[str, str]] = ()
    """agent and reason of each delta that was rejected among them"""
    failures: Mapping[str, Counter[str]] = field(default_factory=dict)
    """agent → why an attempt of it came to nothing → how often"""
    held: Sequence[Held] = ()
    """leases of now"""
    cut: Mapping[str, Counter[str]] = field(default_factory=dict)
    """agent → what held its transfers up → how often"""
    told: Mapping[str, str] = field(default_factory=dict)
    """code of an event of this run → what the newest one says"""
    token_seconds: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    """agent → the blocks of each of its visits, and the seconds of training that a token took there, as it says"""
    memory: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """agent → the most that a visit of it took, and what it may; bytes"""
    cosines: Mapping[str, float] = field(default_factory=dict)
    """emulator → its fidelity, of those that were measured last"""
    floor: float | None = None
    """the run file's"""
    still: Mapping[str, float] = field(default_factory=dict)
    """kind of a job under way → for how many seconds its engine has used no processor"""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """agent → until when"""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """agent → why its data, or its machine, do not fit the run, as it says; but for who has not consented"""
    unmeasured: int = 0
    """scores, losses and fidelities that could not be measured"""
