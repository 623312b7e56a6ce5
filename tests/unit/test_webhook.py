"""What is sent is signed as the specification of Standard Webhooks has it; what is not taken is tried more and more rarely."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedcybgd.coordinator.domain.webhook import WebhookInvalid, levels_from, pause_after, secret_of, signed
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.webhook import webhook_settings


def test_the_signature_of_the_specifications_example() -> None:
    """Of the reference libraries' own tests."""
    secret = secret_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    at = datetime.fromtimestamp(1614265330, tz=UTC)
    headings = signed(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, b'{"test": 2432232314}')
    assert headings == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_tries_are_further_and_further_apart() -> None:
    pauses = [pause_after(tries) for tries in range(1, 20)]
    assert pauses[:4] == [timedelta(seconds=s) for s in (5, 10, 20, 40)]
    assert pauses[-1] == timedelta(hours=1) == pause_after(10_000)


def test_levels() -> None:
    assert [levels_from(level) for level in ("info", "warning", "error")] == [
        ("info", "warning", "error"),
        ("warning", "error"),
        ("error",),
    ]


@pytest.mark.parametrize("url", ["", "nowhere", "ftp://host/x", "https://", "http://[::1", "http://example.org/hook"])
def test_an_address_that_cannot_be_told_is_refused_before_anything_begins(tmp_path: Path, url: str) -> None:
    with pytest.raises(WebhookInvalid, match="FEDCOORD_WEBHOOK_URL"):
        webhook_settings(Settings(home=tmp_path, webhook_url=url))


def test_the_secret_is_made_once_for_whoever_may_read_the_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, webhook_url="http://127.0.0.1:1/hook")
    first, again = webhook_settings(settings), webhook_settings(settings)
    assert first is not None
    assert first == again
    assert settings.webhook_secret.stat().st_mode & 0o077 == 0
    assert secret_of(settings.webhook_secret.read_text()) == first.secret
    assert webhook_settings(Settings(home=tmp_path)) is None


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_AAAA", "secret", "whsec_" + "!" * 40, "hsec_leOHLjqSAh8v6P8YYjgSH8sAmjLtGix04GyAgaGny6E="]
)
def test_a_secret_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    settings = Settings(home=tmp_path, webhook_url="http://127.0.0.1:1/hook")
    settings.webhook_secret.write_text(text)
    with pytest.raises(WebhookInvalid, match=r"webhook\.secret"):
        webhook_settings(settings)
