"""What a person types at `fedagent enroll`, held against what it must be: each mistake is one line that says what is right."""

import platform
import re

from pydantic import TypeAdapter, ValidationError

from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.settings import RunPattern
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.words import Name

TOKEN = re.compile(r"fct_[A-Za-z0-9_-]{43}")
TOKEN_LENGTH = 47
CHARACTERS = "letters of A to Z and a to z, digits, and . _ - (not first), 100 at the most"


def whole_token(text: str) -> str:
    token = text.strip()
    if TOKEN.fullmatch(token) is None:
        raise ConfigError(
            f"the token is not whole: it has {len(token)} characters, a token has {TOKEN_LENGTH} and begins with fct_; "
            "copy it again, or ask the operator for a new one (fedcoord agents token)"
        )
    return token


def agent_name(given: str | None) -> str:
    """The name as given, or one made of the host's."""
    if given is None:
        host = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node().split(".")[0]).lstrip("._-")
        return host[:100] or "agent"
    try:
        return TypeAdapter(Name).validate_python(given)
    except ValidationError as error:
        raise ConfigError(f"{one_line(given)[:120]!r} is no name for an agent: a name has {CHARACTERS}; choose another --name") from error


def run_patterns(given: list[str]) -> list[str]:
    names = [part for text in given for part in text.replace(",", " ").split()]
    try:
        return TypeAdapter(list[RunPattern]).validate_python(names)
    except ValidationError as error:
        wrong = names[int(error.errors()[0]["loc"][0])]
        raise ConfigError(f"{one_line(wrong)[:120]!r} is no name of a run: a name has {CHARACTERS}; * and ? are wildcards") from error
