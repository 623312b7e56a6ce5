"""Counts the tokens of rows with a tokenizer that a coordinator sent: in a walled process of its own, which has an end."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from fedcybgd.agent.errors import AgentError
from fedcybgd.agent.rooms import ISOLATED, prepare
from fedcybgd.agent.sandbox.walls import Walls, WallsRaised, dies_with_its_parent, environment, raise_walls

SECONDS = 60.0
"""A pattern in a tokenizer may be one that takes for ever."""


class TokenizerSlow(AgentError):
    """A tokenizer that does not come to an end with these rows, or ends its process."""

    code = "tokenizer_slow"


def standing(walls: Walls) -> WallsRaised:
    """Which walls a process of this agent can raise here; nothing else is done in it."""
    return WallsRaised.model_validate_json(_process(walls, "").splitlines()[0])


def token_lengths(walls: Walls, tokenizer: str, texts: Sequence[str]) -> list[int]:
    """Tokens of each text. Raises `TokenizerSlow`."""
    lengths: list[int] = json.loads(_process(walls, json.dumps({"tokenizer": tokenizer, "texts": texts})).splitlines()[1])
    return lengths


def _process(walls: Walls, work: str) -> str:
    prepare(walls)
    words = [*ISOLATED, "fedcybgd.agent.lengths", walls.model_dump_json(), str(os.getpid())]
    variables = {**environment(walls, os.environ), "TOKENIZERS_PARALLELISM": "false"}
    try:
        ran = subprocess.run(
            words,
            input=work,
            cwd=walls.work,
            env=variables,
            timeout=SECONDS,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise TokenizerSlow(f"the tokenizer of this run did not come to an end within {SECONDS:.0f} s; the process was ended") from error
    if ran.returncode:
        raise TokenizerSlow(f"the tokenizer of this run cannot be used: {ran.stderr.strip().splitlines()[-1:] or ran.returncode}")
    return ran.stdout


def main() -> None:
    dies_with_its_parent(int(sys.argv[2]))
    _answer(raise_walls(Walls.model_validate_json(sys.argv[1])).model_dump_json())
    if text := sys.stdin.read():
        work = json.loads(text)
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(work["tokenizer"])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _answer(json.dumps([len(encoding.ids) for encoding in tokenizer.encode_batch(work["texts"])]))


def _answer(line: str) -> None:
    """A line for the process that started this one; no terminal is at its other end."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
