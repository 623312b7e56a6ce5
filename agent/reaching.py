"""The coordinator that agent.toml names, as policy.toml lets it be reached."""

from urllib.parse import urlsplit

from fedcybgd.agent.client import Client
from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.keys import secret_of
from fedcybgd.agent.policy import Policy, authority_of, load_policy
from fedcybgd.agent.proof import Proof
from fedcybgd.agent.settings import Config, Home
from fedcybgd.shared.host.addresses import check_way, is_loopback


def load(home: Home) -> tuple[Config, Policy]:
    """Both files of the owner; what both limit has the lower limit. Raises `ConfigError`, also where agent.toml goes beyond the policy."""
    config, policy = home.load_config(), load_policy(home)
    rule = policy.coordinator
    if rule.url is not None and rule.url.rstrip("/") != config.coordinator.rstrip("/"):
        raise ConfigError(f"agent.toml names the coordinator {config.coordinator}, policy.toml allows {rule.url} alone (coordinator.url)")
    parts = urlsplit(config.coordinator)
    if parts.scheme != "https" and not rule.plain_http and not is_loopback(parts.hostname or ""):
        raise ConfigError(f"policy.toml allows no http:// beyond this machine (coordinator.plain_http): {config.coordinator}")
    if parts.scheme != "https" and rule.authority is not None:
        raise ConfigError(f"policy.toml names a certificate authority, and {config.coordinator} has no certificate: use https://")
    check_way(config.coordinator, config.plain_http, "write plain_http = true at the top of agent.toml, above [data]")
    _check_site_cache(config, policy)
    limits = config.limits
    disk, memory = (limits.disk_gb, policy.most.disk_gb), (limits.memory_gb, policy.most.memory_gb)
    lower = {"disk_gb": min(n for n in disk if n is not None), "memory_gb": min((n for n in memory if n is not None), default=None)}
    return config.model_copy(update={"limits": limits.model_copy(update=lower)}), policy


def _check_site_cache(config: Config, policy: Policy) -> None:
    parts = urlsplit(config.site_cache.url or "https://")
    if parts.scheme == "https" or is_loopback(parts.hostname or ""):
        return
    if not policy.coordinator.plain_http:
        raise ConfigError(f"policy.toml allows no http:// beyond this machine (coordinator.plain_http): {config.site_cache.url}")
    if not config.site_cache.plain_http:
        raise ConfigError(
            f"the site cache at {config.site_cache.url} is plain HTTP: whoever is on the way reads the shards. "
            "Use https://; or, where the network itself is trusted, write plain_http = true under [site_cache]"
        )


def client(home: Home, config: Config, policy: Policy, mine: Credentials | None, who_answers: bool = False) -> Client:
    """A client with this agent's key, or without one before there is one. `who_answers`: it asks for that, whatever the policy says."""
    proof = Proof(policy.coordinator.keys, wanted=who_answers)
    known = policy.coordinator.id or (mine.coordinator if mine is not None else None)
    return Client(
        config.coordinator,
        secret_of(mine) if mine is not None else "",
        known,
        authority_of(home, policy),
        proof,
        policy.coordinator.storage,
    )
