"""Looks at rows and at a model for a recipe: what columns and labels there are, how long rows are, which blocks the model has."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcybgd.coordinator.domain.recipe import IMAGES, RecipeModel, RecipeRows, RecipeTask
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import CLASSIFICATIONS
from fedcybgd.shared.files.labels import NUMBER, bare
from fedcybgd.shared.files.tables import Row, examples, label_names_of, read_rows
from fedcybgd.shared.files.well_known import ALIASES

MEASURED = 2000
"""Rows whose tokens are counted"""
MOST_LABELS = 1000
"""As many different values are labels at the most; more are something else"""
MOST_NUMBERED = 100_000
LONGEST_NAME = 10_000
"""Characters of a label, as in a run file"""
SPARSE = 8
"""Times as many labels as have a row are numbers of something else, unless somebody says that they are labels"""
WORD = re.compile(r"[A-Za-z]+|\S|\n|\s{2,}")
LETTERS_A_TOKEN = ((16_000, 3), (2_000, 2), (0, 1))
"""Where there is no tokenizer to ask, by the size of its vocabulary: fewer than most have, so that rows are thought rather too long"""
Count = Callable[[Row], int]
"""Tokens of an example"""


def model_of(name: str, config: Mapping[str, Any], task: RecipeTask, labels: int | None) -> RecipeModel:
    """What a recipe goes by of a model, from the contents of its config.json. Needs torch; no weight is read. Raises `ModelUnknown`, `PartitionError`."""
    from fedcybgd.shared.files.configuration import HIDDEN_SIZE, ModelUnknown
    from fedcybgd.shared.models.assembly import skeleton
    from fedcybgd.shared.models.blocks import partition
    from fedcybgd.shared.models.model_classes import sees_what_follows, settings_of
    from fedcybgd.shared.models.positions import usable_positions

    if task == "causal-lm" and sees_what_follows(settings_of(config)):
        raise ModelUnknown(f"{name} is an encoder ({config['model_type']}), which cannot learn causal-lm; take a decoder")
    of_labels = (
        {} if labels is None else {"id2label": {str(i): str(i) for i in range(labels)}, "label2id": {str(i): i for i in range(labels)}}
    )
    made = skeleton({**config, **of_labels}, task)
    inner = {**config, **(config.get("text_config") or {})}
    width = next((inner[key] for key in HIDDEN_SIZE if isinstance(inner.get(key), int)), 768)
    return RecipeModel(name, tuple(block.name for block in partition(made) if block.is_used), width, usable_positions(made))


def counting(task: RecipeTask, directory: Path | None, config: Mapping[str, Any]) -> Count:
    """How the tokens of an example are counted: by the tokenizer in `directory`, or else from its characters. Raises `DataError`.

    A character that is no letter of these is thought to be as many tokens as it has bytes: no tokenizer makes more of it.
    """
    if task == IMAGES:  # the model says, and no row
        return lambda _: 0
    if directory is None:
        vocabulary = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or 0
        letters = next(letters for least, letters in LETTERS_A_TOKEN if vocabulary >= least)
        return lambda row: (
            3
            + sum(-(-len(word) // letters) if word.isascii() else len(word.encode()) for part in _parts(row) for word in WORD.findall(part))
        )
    from fedcybgd.shared.models.tokens import load_tokenizer

    tokenizer: Any = load_tokenizer(directory)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes of no file at all
        raise DataError(f"{directory} has no tokenizer; save it there with the tokenizer's save_pretrained", path=str(directory))
    return lambda row: len(tokenizer(*_parts(row))["input_ids"])


def _parts(row: Row) -> list[str]:
    return [row[field] for field in ("text", "text_pair", "prompt", "completion", "question", "context") if row.get(field) is not None]


def rows_of(
    file: Path,
    task: RecipeTask,
    columns: Mapping[str, str],
    labels: int | None,
    count: Count,
    called: str,
    of_agents: int | None = None,
    train: Path | None = None,
) -> RecipeRows:
    """What a recipe goes by of a held-out file: each of its rows is read as a run would read it. Raises `DataError`.

    `columns` maps fields that somebody has said; `labels` is their number where somebody says it; `called` is the file for the run file;
    `of_agents` how many rows agents have, and `train` a file of such rows: their labels count, too.
    """
    first = next(iter(read_rows(file)), None)
    if first is None:
        raise DataError(f"{file.name} has no rows", path=str(file))
    columns = {**_guessed(task, first, columns), **columns}
    files = [file] if train is None else [file, train]
    known = _labels(files, columns.get("label", "label"), labels) if task in CLASSIFICATIONS else None
    names = None if known is None or isinstance(known, int) else list(known)
    number = known if isinstance(known, int) or known is None else len(known)
    spec = TaskSpec(task=task, num_labels=number, label_names=names, max_length=1)
    lengths: list[int] = []
    held_out, is_text = 0, False
    with_label: Counter[int] = Counter()
    for row in examples(file, spec, columns, None, "--column"):
        if held_out < MEASURED:
            lengths.append(count(row))
        if "label" in row:
            with_label[row["label"]] += 1
        held_out, is_text = held_out + 1, task == "causal-lm" and "text" in row
    if train is not None:
        of_train = sum(1 for _ in examples(train, spec, columns, None, "--column"))
        of_agents = of_agents or of_train
    at = (99 * len(lengths) + 99) // 100 - 1
    length = sum(lengths) // len(lengths) if is_text else sorted(lengths)[at]
    commonest = max(with_label.values()) / held_out if with_label else None
    fields = ("text",) if is_text else ("prompt", "completion") if task == "causal-lm" else (*ALIASES[task], "answers")
    used = {columns.get(field, field) for field in fields}
    return RecipeRows(
        called, held_out, length, known, columns, of_agents, is_text, commonest, tuple(name for name in first if name not in used)
    )


def _guessed(task: RecipeTask, row: Row, said: Mapping[str, str]) -> dict[str, str]:
    """Columns under well-known names, for fields that have no column of their own."""
    found = {}
    for field, names in ALIASES[task].items():
        other = next((name for name in names if name in row), None)
        if field not in row and field not in said and other is not None and other not in said.values():
            found[field] = other
    pair, has_text = {"prompt", "completion"}, "text" in said or ("text" in row and task == "causal-lm")
    if pair - set(found) - set(row) - set(said) or (has_text and not pair & set(said)):  # half of a pair is none, and text goes before
        found = {field: column for field, column in found.items() if field not in ("prompt", "completion")}
    return found


def _labels(files: Sequence[Path], column: str, said: int | None) -> int | tuple[str, ...] | None:
    """How many labels there are, where they are numbers from 0; else their names in order."""
    told = label_names_of(files[0], column)
    if told is not None and 2 <= len(told) <= MOST_LABELS and said in (None, len(told)):
        return tuple(told)
    of_files: dict[Path, set[Any]] = {file: set() for file in files}
    first: dict[tuple[Path, bool], tuple[int, Any]] = {}
    for file, number, row in _numbered(files, column):
        value = row.get(column)
        if value is None:
            return said or 2  # what is wrong with this row is told when it is read as an example
        if not isinstance(value, (str, int, float)):
            raise DataError(f"{file.name} row {number}: column {column!r} holds no label, but a {type(value).__name__}")
        if isinstance(value, str) and len(value) > LONGEST_NAME:
            raise DataError(f"{file.name} row {number}: column {column!r} has {len(value):,} characters; is that the label?")
        if not isinstance(value, str) or not _is_number(value):  # text of digits may be either
            first.setdefault((file, _is_number(value)), (number, value))
            _check_alike(file, first.get((file, True)), first.get((file, False)))
        of_files[file].add(value)
        if len(of_files[file]) > MOST_LABELS and said is None:
            raise DataError(
                f"{file.name}: column {column!r} has more than {MOST_LABELS:,} different values; is that the label? Say how many with --labels"
            )
    _check_files_alike(of_files)
    values = set().union(*of_files.values())
    return _of_numbers(files[0], column, values, said) if all(_is_number(value) for value in values) else _of_names(files[0], values, said)


def _check_alike(file: Path, number: tuple[int, Any] | None, name: tuple[int, Any] | None) -> None:
    """A number and a name in one file: by guessing, a label would become two. Raises `DataError`."""
    if number is None or name is None:
        return
    said = {number[0]: f"a number, {number[1]!r}", name[0]: f"a name, {str(name[1])!r}"}
    last, before = max(said), min(said)
    raise DataError(f"{file.name} row {last}: the label is {said[last]}, and row {before} has {said[before]}; write them alike")


def _check_files_alike(of_files: Mapping[Path, Collection[Any]]) -> None:
    """The same, of numbers in one file and names in another. Raises `DataError`."""
    named = next((file for file, values in of_files.items() if not all(map(_is_number, values))), None)
    for file, values in of_files.items():
        if named is None or not values or not all(map(_is_number, values)):
            continue
        if not {str(value).strip() for value in values} <= {str(value).strip() for value in of_files[named]}:
            raise DataError(
                f"{file.name}: every label is a number, and {named.name} has names: which number is which name? Write them alike"
            )


def _numbered(files: Iterable[Path], column: str) -> Iterator[tuple[Path, int, Row]]:
    """Rows of all files, each with its file and its number there; no other column is read where one need not be."""
    for file in files:
        for number, row in enumerate(read_rows(file, columns=[column]), 1):
            yield file, number, row


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and (not isinstance(value, str) or NUMBER.fullmatch(value.strip()) is not None)


def _of_numbers(file: Path, column: str, values: Collection[Any], said: int | None) -> int:
    if odd := sorted({float(value) for value in values if not float(value).is_integer()}):
        raise DataError(f"{file.name}: column {column!r} holds {odd[0]:g}, which is no label: labels are whole numbers from 0, or names")
    least, most = int(min(map(float, values))), int(max(map(float, values)))
    if least < 0 or (least == 1 and 0 not in {int(float(value)) for value in values} and said in (None, most)):
        raise DataError(f"{file.name}: labels that are numbers count from 0, and the least here is {least}; number them so, or name them")
    if most >= MOST_NUMBERED:
        raise DataError(
            f"{file.name}: column {column!r} holds {max(values, key=float)}, and that is no number of a label: they are below {MOST_NUMBERED:,}"
        )
    if said is not None and most >= said:
        raise DataError(f"{file.name}: label {most} is there, so there are more labels than --labels {said}")
    found = said or most + 1
    different = len({int(float(value)) for value in values})
    if said is None and found > SPARSE * different:
        raise DataError(
            f"{file.name}: the greatest label is {most}, and there are rows of {different} only: number them 0…{different - 1}, "
            "or say how many labels there are with --labels"
        )
    if found < 2:
        raise DataError(f"{file.name} has rows of one label only: there is nothing to tell apart. If agents have others, say --labels")
    return found


def _of_names(file: Path, values: Collection[Any], said: int | None) -> tuple[str, ...]:
    names = tuple(sorted({bare(str(value)) for value in values}))
    if said is not None and said != len(names):
        raise DataError(
            f"{file.name} has rows of {len(names)} labels, and --labels says {said}: add a row of each label that is missing, "
            "or write all names into the run file yourself"
        )
    if len(names) < 2:
        raise DataError(f"{file.name} has rows of one label only ({names[0]!r}): there is nothing to tell apart")
    return names


def config_of(directory: Path) -> dict[str, Any]:
    """The contents of a directory's config.json. Raises `DataError`, also where a coordinator would not take the weights beside it."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{directory} has no config.json: it is no model directory", path=str(directory)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{directory / 'config.json'} cannot be read: {error}", path=str(directory)) from error
    if not isinstance(config, dict):
        raise DataError(f"{directory / 'config.json'} is no JSON object", path=str(directory))
    if any(directory.glob("*.bin")) and not any(directory.glob("*.safetensors")):
        raise DataError(
            f"{directory} has pickled weights, which no coordinator takes; save the model with save_pretrained(safe_serialization=True)",
            path=str(directory),
        )
    return config
