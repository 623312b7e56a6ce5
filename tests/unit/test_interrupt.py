"""A command that cleans up does so whatever asks it to end."""

import signal

import pytest

from fedcybgd.shared.host import interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_is_a_ctrl_c_in_there_and_what_it_was_elsewhere(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupt.at_the_end():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before
