"""What is remembered of run files is bounded, whoever asks at the same time."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedcybgd.coordinator.services.records import run_files


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns far more often than they do."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_threads_that_remember_at_once_do_not_disturb_each_other(switching: None) -> None:
    kept: dict[str, str] = {}

    def remember(thread: int) -> None:
        for number in range(200_000):
            run_files.keep(kept, f"{thread}-{number}", "run", 100)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(remember, range(4)))
    assert len(kept) == 100
