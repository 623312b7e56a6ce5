"""Which files of a directory are a model's, looked at before a byte of them is sent: what would be refused in the end is told at once."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcybgd.client.errors import FileUnusable
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.model_uploads import CONFIG, INDEX, NO_TOKENIZER, TEXTS, TOKENIZER, WEIGHTS, WITHOUT_VOCABULARY, reads_rows
from fedcybgd.shared.contract.words import NAME
from fedcybgd.shared.files.configuration import QUANTIZED, is_quantized, plain
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.files.stand_ins import HEAD, pointer

WHOLE = f"model{WEIGHTS}"
ADAPTER = "adapter_config.json"


def files_of(directory: Path) -> list[Path]:
    """Configuration, tokenizer, and the weights that transformers would load; nothing of directories below. Raises `FileUnusable`."""
    if not directory.is_dir():
        raise FileUnusable(f"there is no directory {directory}")
    found = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".") and path.stat().st_size)
    texts = [path for path in found if path.suffix in TEXTS and re.fullmatch(NAME, path.name)]  # no tokenizer reads files of other names
    weights = [path for path in found if path.suffix == WEIGHTS]
    if any(path.name == ADAPTER for path in texts):
        raise FileUnusable(f"{directory} is or has an adapter: merge it first (merge_and_unload of peft), and upload the result")
    if not any(path.name == CONFIG for path in texts):
        raise FileUnusable(f"{directory} has no {CONFIG}: it is no model's directory")
    if not weights:
        raise FileUnusable(f"{directory} has no *{WEIGHTS}; save the model with save_pretrained(safe_serialization=True)")
    if not reads_rows((path.name for path in texts), _needs_vocabulary(directory / TOKENIZER)):
        raise FileUnusable(f"{directory}: {NO_TOKENIZER}")
    config = _object(directory / CONFIG)
    wanted = weights if isinstance(config.get("transformers_weights"), str) else [path for path in weights if path.name == WHOLE] or weights
    _look(config, texts, wanted)
    return texts + wanted


def _look(config: Mapping[str, Any], texts: list[Path], weights: list[Path]) -> None:
    """Raise `FileUnusable` for a pointer in the place of a file, weights that are none or not all there, and a model that is never taken."""
    for path in texts + weights:
        with path.open("rb") as file:
            if (what := pointer(file.read(HEAD))) is not None:
                raise FileUnusable(f"{path} is {what}")
    index = next((path for path in texts if path.name == f"model{WEIGHTS}{INDEX}"), None)
    listed = _object(index).get("weight_map") if index is not None and all(path.name != WHOLE for path in weights) else None
    names = {name for name in listed.values() if isinstance(name, str)} if isinstance(listed, dict) else set[str]()
    if absent := sorted(names - {path.name for path in weights}):
        raise FileUnusable(f"files of the checkpoint are missing: {', '.join(absent[:5])}")
    if is_quantized(config):
        raise FileUnusable(QUANTIZED)
    try:
        plain(config)
        for path in weights:
            if not names or path.name in names:
                read_header(path)
    except FedError as error:
        raise FileUnusable(error.message) from error


def _needs_vocabulary(settings: Path) -> bool:
    """Whether these settings name a tokenizer that has a vocabulary; where they name none, or cannot be read, the coordinator sees."""
    named = _object(settings).get("tokenizer_class")
    return isinstance(named, str) and named not in WITHOUT_VOCABULARY


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
