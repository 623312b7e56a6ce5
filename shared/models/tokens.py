"""Loads a tokenizer from a directory, never with code of others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from fedcybgd.shared.contract.errors import FedError

EXTRAS = ("sentencepiece", "tiktoken", "protobuf", "sacremoses")


class TokenizerUnusable(FedError):
    """A tokenizer that transformers cannot load, or whose library is not installed here."""

    code = "tokenizer_unusable"


def load_tokenizer(directory: Path) -> Any:
    """What transformers makes of the tokenizer files (and config.json) in `directory`. Raises `TokenizerUnusable`."""
    try:
        return transformers.AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a library of another language ends with errors of its own kinds
        said = f"{type(error).__name__}: {error}"
        if missing := next((name for name in EXTRAS if name in said.lower()), None):
            raise TokenizerUnusable(
                f"this tokenizer needs {missing}: install the extra `tokenizers`, or give it a tokenizer.json"
            ) from error
        raise TokenizerUnusable(f"the tokenizer cannot be loaded: {said[:300]}") from error


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model of a config.json has embeddings for; None where it does not say."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None
