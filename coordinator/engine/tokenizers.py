"""Tries a model's tokenizer before anybody trains with it, and stores it so that agents need nothing special to run it."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from fedcybgd.coordinator.engine.model_directory import LARGEST_TEXT, ModelDirectory, ModelRefused
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.engine.tokenizer_samples import ODD, SAMPLES
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.files.configuration import ModelUnknown, in_a_line, plain
from fedcybgd.shared.models.tokens import TokenizerUnusable, load_tokenizer

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "generation_config.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "tekken.json", "tiktoken.model")
"""What tokenizers usually read; what the model's own class reads is asked of it, and *.model is looked for as transformers does."""
FILE_FIELDS = ("vocab_file", "merges_file", "tokenizer_file", "spm_file", "emoji_file", "added_tokens_file", "special_tokens_map_file")
"""Fields of tokenizer_config.json that name a file, which may be any file of the machine that reads it."""
NEEDED_TO_CONVERT = ("sentencepiece", "google.protobuf")
CONTINUED = "##"
"""What a piece of a word begins with that is not its first one; alone it is no text."""
TRIAL_S = 60.0
"""Seconds that a tokenizer has for some forty short texts; the largest take two."""
TRIAL_BYTES = 2 << 30
"""What it may take for them; one with 256,000 pieces and 500,000 merges takes a tenth of it."""
_in_time: set[str] = set()
"""Digests of tokenizer.json that were done in time: many models share one."""
MOSTLY = 0.5
"""Share of a script's tokens that are unknown from which the script counts as unknown."""
OWN_WORDS = 64
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Tried:
    """A tokenizer that was tried: its files, stored, and what its users should know of it."""

    files: list[FileRef]
    notes: list[str]


def import_tokenizer(store: EngineStore, folder: ModelDirectory, config: dict[str, Any], rows: int | None) -> Tried:
    """Store the tokenizer of a model whose embeddings have `rows` rows.

    One that has no tokenizer.json gets one, so that agents need neither sentencepiece nor tiktoken. Raises `ModelRefused` for a
    tokenizer that cannot be read, that knows no word, that gives tokens without a row, or that takes for ever.
    """
    settings = _settings(folder)
    names = _names(folder, config, settings)
    with store.scratch() as scratch:
        given = scratch / "given"
        _lay_out(folder, names, settings, config, given)
        _check_time(given)
        of_generation = _readable_generation(given)
        tokenizer = _load(given, folder, _lacking(folder, config, settings))
        with _telling(folder):
            kept, notes = _portable(given, scratch, tokenizer, folder)
            _check_vocabulary(tokenizer, folder)
            notes += of_generation
            notes += _unlike_its_file(given, tokenizer)
            notes += _check_rows(tokenizer, rows, folder)
            notes += _unknown_scripts(tokenizer)
        files = [FileRef(name=p.name, digest=d, size=s) for p in kept for d, s in [write_blob(store, p.read_bytes())]]
    return Tried(files, notes)


def _settings(folder: ModelDirectory) -> dict[str, Any] | None:
    name = "tokenizer_config.json"
    if not folder.has(name):
        return None
    settings = folder.json(name)
    try:
        plain(settings)
    except ModelUnknown as error:
        raise ModelRefused(f"{folder.place(name)}: {error.message}") from error
    return {field: value for field, value in settings.items() if field not in FILE_FIELDS}


def _names(folder: ModelDirectory, config: dict[str, Any], settings: dict[str, Any] | None) -> list[str]:
    """The files of the directory that transformers would read for the tokenizer. Raises `ModelRefused` where a vocabulary is missing."""
    classes = _classes(config, settings)
    of_class = [name for known in classes for name in known.vocab_files_names.values()]
    vocabularies = [n for n in dict.fromkeys([*VOCABULARIES, *of_class, *folder.names("*.model")]) if folder.has(n)]
    without_files = bool(classes) and not classes[0].vocab_files_names  # bytes and characters need no vocabulary
    if not vocabularies and not (without_files and settings is not None):
        wanted = ", ".join(sorted(set(of_class) | {"tokenizer.json"}))
        raise ModelRefused(f"{folder} has no tokenizer: none of {wanted} is there; save it with the tokenizer's save_pretrained")
    return [*vocabularies, *(name for name in SETTINGS if folder.has(name))]


def _lacking(folder: ModelDirectory, config: dict[str, Any], settings: dict[str, Any] | None) -> list[str]:
    """Of the files that the tokenizer's class reads beside a tokenizer.json, or in its place, those that are not there."""
    first = next(iter(_classes(config, settings)), None)
    files = sorted(set(first.vocab_files_names.values()) - {"tokenizer.json"}) if first is not None else []
    return [] if folder.has("tokenizer.json") else [name for name in files if not folder.has(name)]


def _classes(config: dict[str, Any], settings: dict[str, Any] | None) -> list[Any]:
    names = ((settings or {}).get("tokenizer_class"), config.get("tokenizer_class"), TOKENIZER_MAPPING_NAMES.get(config["model_type"]))
    found = [tokenizer_class_from_name(name) for name in names if isinstance(name, str)]
    return [known for known in found if hasattr(known, "vocab_files_names")]  # AutoTokenizer and the like are no tokenizers


def _lay_out(folder: ModelDirectory, names: Iterable[str], settings: dict[str, Any] | None, config: dict[str, Any], place: Path) -> None:
    """Copy what the tokenizer consists of to `place`, each file looked at first."""
    place.mkdir()
    for name in names:
        if name.endswith(".json"):
            folder.json(name, LARGEST_TEXT)
        (place / name).write_bytes(folder.text(name))
    if settings is not None and settings != folder.json("tokenizer_config.json"):
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    (place / "config.json").write_text(json.dumps(config))


def _readable_generation(given: Path) -> list[str]:
    """Let go of a generation_config.json that transformers would not read: an export with it could not be loaded."""
    path = given / "generation_config.json"
    try:
        if path.exists():
            GenerationConfig.from_pretrained(str(given), local_files_only=True)
    except Exception as error:  # whatever settings of nonsense lead to
        path.unlink()
        return [f"its generation_config.json is left out, for transformers does not read it: {in_a_line(error)}"]
    return []


def _check_time(given: Path) -> None:
    """In a process of its own, which can be ended; what transformers adds to it later are expressions of its own."""
    path = given / "tokenizer.json"
    if not path.exists() or (digest := digest_of_file(path)) in _in_time:
        return
    program = Path(__file__).with_name("tokenizer_trial.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(program), str(path), str(TRIAL_BYTES)], input=json.dumps([*SAMPLES.values(), *ODD]), capture_output=True, text=True,
            timeout=TRIAL_S, env={"TOKENIZERS_PARALLELISM": "false"}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelRefused(
            f"tokenizer.json takes more than {TRIAL_S:.0f} s for a few short texts: a regular expression in it may never end",
            seconds=TRIAL_S,
        ) from error
    if done.returncode and "memory allocation" in done.stderr:
        raise ModelRefused(f"tokenizer.json takes more than {TRIAL_BYTES / 1e9:.1f} GB of memory for a few short texts")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"its reader ended with status {done.returncode}"])[-1]
        raise ModelRefused(f"tokenizer.json cannot be used: {said[:300]}")
    _in_time.add(digest)


@contextmanager
def _telling(folder: ModelDirectory) -> Iterator[None]:
    """Raises as `ModelRefused` whatever the tokenizer ends with at the texts that it is tried at."""
    try:
        yield
    except (FedError, OSError, MemoryError):
        raise
    except Exception as error:  # a library of another language ends with errors of its own kinds
        raise ModelRefused(
            f"{folder}: its tokenizer fails at a few short texts; perhaps its vocabulary lacks a special token: {in_a_line(error)}"
        ) from error


def _load(place: Path, folder: ModelDirectory, lacking: Sequence[str]) -> Any:
    foreign = not (place / "tokenizer.json").exists() and any(p.suffix == ".model" for p in place.iterdir())
    # Without them transformers takes such a file for another format, or makes a tokenizer that knows nothing.
    if foreign and (missing := [name.removeprefix("google.") for name in NEEDED_TO_CONVERT if not _installed(name)]):
        raise ModelRefused(
            f"{folder} has a sentencepiece vocabulary and no tokenizer.json: the coordinator needs {' and '.join(missing)} to convert it "
            "(the extra `tokenizers`); or add the model with a tokenizer.json"
        )
    try:
        return load_tokenizer(place)
    except TokenizerUnusable as error:
        hint = f"; {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not there" if lacking else ""
        raise ModelRefused(f"{folder}: {error.message}{hint}") from error


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _portable(given: Path, scratch: Path, tokenizer: Any, folder: ModelDirectory) -> tuple[list[Path], list[str]]:
    """The files to store: as they were given, with a tokenizer.json beside them where there was none."""
    files = sorted(p for p in given.iterdir() if p.name != "config.json")
    if (given / "tokenizer.json").exists():
        return files, []
    if not getattr(tokenizer, "is_fast", False):
        note = f"its tokenizer ({type(tokenizer).__name__}) has no fast form: agents may need the extra `tokenizers`, and take longer"
        return files, [note]
    alone, beside = scratch / "alone", scratch / "beside"
    tokenizer.save_pretrained(str(alone))
    shutil.copytree(alone, beside)
    for path in given.iterdir():
        if path.name == "config.json" or not (beside / path.name).exists():
            shutil.copy(path, beside)
    shutil.copy(given / "config.json", alone)
    for place in (beside, alone):
        try:
            same = _behaviour(load_tokenizer(place)) == _behaviour(tokenizer)
        except TokenizerUnusable:
            continue
        if same:
            return sorted(p for p in place.iterdir() if p.name != "config.json"), ["its tokenizer was converted to a tokenizer.json"]
    raise ModelRefused(f"{folder}: its tokenizer cannot be converted to a tokenizer.json that gives the same tokens; add it with one")


def _behaviour(tokenizer: Any) -> list[object]:
    texts = [*SAMPLES.values(), *ODD]
    return [
        tokenizer(texts)["input_ids"], tokenizer(texts, texts[::-1])["input_ids"],
        tokenizer.pad_token_id, tokenizer.padding_side, tokenizer.all_special_ids,
    ]  # fmt: skip


def _unlike_its_file(given: Path, tokenizer: Any) -> list[str]:
    """Transformers makes a tokenizer of its class and of its settings, and of tokenizer.json takes the vocabulary alone where it has such a class."""
    if not (given / "tokenizer.json").exists():
        return []
    file = Tokenizer.from_file(str(given / "tokenizer.json"))
    file.no_truncation()
    file.no_padding()
    for text in SAMPLES.values():
        said = file.encode(text, add_special_tokens=False).tokens
        made = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        if said != made:
            at = next((i for i, (one, other) in enumerate(zip(said, made, strict=False)) if one != other), min(len(said), len(made)))
            shown = (" ".join(tokens[max(0, at - 1) : at + 3]) for tokens in (made, said))
            return [
                "as {} it gives other tokens than its tokenizer.json says: {} in place of {}. Where the model was trained with that file alone, "
                'set "tokenizer_class": "TokenizersBackend" in tokenizer_config.json'.format(type(tokenizer).__name__, *shown)
            ]
    return []


def _check_vocabulary(tokenizer: Any, folder: ModelDirectory) -> None:
    words = sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens), key=tokenizer.get_vocab().__getitem__)
    if not words:
        wanted = ", ".join(sorted(type(tokenizer).vocab_files_names.values()))
        raise ModelRefused(
            f"{folder}: its tokenizer knows no word, its {len(tokenizer)} tokens are all special ones; "
            f"a file of its vocabulary is missing ({wanted})",
            tokens=len(tokenizer),
        )
    some = words[:: max(1, len(words) // OWN_WORDS)]
    own = [tokenizer.convert_tokens_to_string([word]).strip().removeprefix(CONTINUED) for word in some]
    if all(_unknown(tokenizer, text) >= 1 for text in (*SAMPLES.values(), *filter(None, own))):
        raise ModelRefused(f"{folder}: its tokenizer takes every text for unknown, also the words of its own vocabulary")
    longer = [text for word, text in zip(some, own, strict=True) if len(word) > 2 and len(text) > 1 and not BYTE.fullmatch(word)]
    pieces = set(_pieces(tokenizer, longer)) if longer else set()
    if pieces and max(map(len, pieces)) == 1:
        raise ModelRefused(
            f"{folder}: its tokenizer gives single characters alone, and none of the longer words of its vocabulary: "
            "how they are put together is missing (merges.txt, or the merges of tokenizer.json), or its class reads another kind of vocabulary"
        )


def _pieces(tokenizer: Any, texts: Sequence[str]) -> Iterator[str]:
    """The tokens of some texts that are neither special nor a byte."""
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        for token in tokenizer.convert_ids_to_tokens([i for i in ids if i not in tokenizer.all_special_ids]):
            if not BYTE.fullmatch(token):
                yield token


def _check_rows(tokenizer: Any, rows: int | None, folder: ModelDirectory) -> list[str]:
    if rows is None:
        return []
    for ids in tokenizer([*SAMPLES.values(), *ODD])["input_ids"]:
        if beyond := [i for i in ids if i >= rows]:
            token = tokenizer.convert_ids_to_tokens(beyond[0])
            raise ModelRefused(
                f"{folder}: its tokenizer gives token {beyond[0]} ({token!r:.40}), and its embeddings have {rows} rows; "
                "resize the embeddings, or add the tokenizer that the model was trained with",
                token=beyond[0], rows=rows,
            )  # fmt: skip
    beyond = sorted(i for i in tokenizer.get_vocab().values() if i >= rows)
    if not beyond:
        return []
    return [f"{len(beyond)} tokens of its tokenizer have no row in the embeddings ({rows} rows): data in which one occurs are refused"]


def _unknown_scripts(tokenizer: Any) -> list[str]:
    found = {script: _unknown(tokenizer, text) for script, text in SAMPLES.items()}
    mostly = [script for script, share in found.items() if share >= MOSTLY]
    return [f"its tokenizer does not know: {', '.join(mostly)}"] if mostly else []


def _unknown(tokenizer: Any, text: str) -> float:
    """The share of a text's tokens that mean "unknown"; 1 for a text that gives no token at all."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return sum(i == tokenizer.unk_token_id for i in ids) / len(ids) if ids else 1.0
