"""Which part of a blob a `Range` asks for, whatever it says."""

import pytest
from starlette.requests import Request

from fedcybgd.coordinator.api.files import _range

SIZE = 10
NINES = "9" * 5000
ASKED = {
    "bytes=0-0": (0, 1), "bytes=2-": (2, 10), "bytes=9-99": (9, 10), "bytes=-3": (7, 10), "bytes=-99": (0, 10), " bytes=1-2 ": (1, 3),
}  # fmt: skip
NOTHING_OF_IT = ["bytes=10-", "bytes=99-", "bytes=-0"]
ALL = ["", "bytes=-", "bytes=5-2", "bytes=0-1,3-4", "items=0-1", "bytes=0x1-2", f"bytes={NINES}-", f"bytes=-{NINES}", f"bytes=0-{NINES}"]


def part(said: str, **more: str) -> tuple[int, int] | None:
    headers = [(name.replace("_", "-").encode(), text.encode()) for name, text in {"range": said, **more}.items()]
    return _range(Request({"type": "http", "headers": headers}), '"etag"', SIZE)


@pytest.mark.parametrize("said", ASKED)
def test_a_range_is_a_part(said: str) -> None:
    assert part(said) == part(said, if_range='"etag"') == ASKED[said]
    assert part(said, if_range='"other"') is None


@pytest.mark.parametrize("said", NOTHING_OF_IT)
def test_a_range_beyond_the_end_is_empty(said: str) -> None:
    found = part(said)
    assert found is not None
    assert found[0] >= found[1]


@pytest.mark.parametrize("said", ALL)
def test_what_cannot_be_understood_is_all_of_it(said: str) -> None:
    assert part(said) is None
