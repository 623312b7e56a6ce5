"""By both clocks of the machine: another key is made in time whichever of them goes wrong."""

import pytest

from fedcybgd.agent.key_life import KeyLife


@pytest.mark.parametrize(
    ("wall", "awake", "due"),
    [
        (49.0, 49.0, False),
        (50.0, 50.0, True),
        (50.0, 1.0, True),  # the machine slept
        (-3600.0, 50.0, True),  # the clock was set back
        (-3600.0, 49.0, False),
        (1e9, 1.0, True),  # or forwards: a key too early does no harm
    ],
)
def test_half_of_the_time_is_over_by_either_clock(wall: float, awake: float, due: bool) -> None:
    times = [1000.0, 7.0]
    life = KeyLife(50.0, (lambda: times[0], lambda: times[1]))
    times[:] = [1000.0 + wall, 7.0 + awake]
    assert life.is_half_over() is due


def test_what_has_ended_already_is_due_at_once() -> None:
    assert KeyLife(0.0).is_half_over()
