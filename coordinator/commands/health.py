"""`fedcoord health`: whether the coordinator of this machine answers."""

import httpx
from pydantic import ValidationError

from fedcybgd.client.errors import CoordinatorAway
from fedcybgd.coordinator.commands.given import settings_of
from fedcybgd.coordinator.commands.output import Json, say_json
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.agents import Health
from fedcybgd.shared.contract.words import API
from fedcybgd.shared.host.terminal import Terminal

HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
WITHIN_S = 5.0


def health(as_json: Json = False) -> None:
    """Ask the coordinator of this machine's settings (FEDCOORD_HOST, FEDCOORD_PORT …) whether it answers; for health checks: status 1 where not."""
    found = asked(settings_of())
    if as_json:
        say_json(Health, found)
        return
    full = f"; full: {', '.join(found.full_disks)}" if found.full_disks else ""
    Terminal().say(f"{found.status}, version {found.version}{full}")


def asked(settings: Settings) -> Health:
    """Raises `CoordinatorAway`. Which certificate it shows is for agents to judge; here no more is asked than whether it answers."""
    host = HERE.get(settings.host, settings.host)
    scheme = "http" if settings.tls_certificate is None else "https"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}{API}/health"
    named = {"Host": min(settings.names)} if settings.names else {}
    try:
        with httpx.Client(verify=False, trust_env=False, timeout=WITHIN_S, headers=named) as client:  # noqa: S501
            return Health.model_validate_json(client.get(url).raise_for_status().content)
    except (httpx.HTTPError, ValidationError) as error:
        raise CoordinatorAway(f"no coordinator answers at {url}: {str(error) or type(error).__name__}") from error
