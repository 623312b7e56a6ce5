"""A recipe as a run file that people read and change: YAML with a comment where a value wants one."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fedcybgd.coordinator.domain.recipe import DAMPING, RecipeModel, RecipeRows

HEADING = (
    "Written by `fedcoord init`: values to start from, chosen by the held-out rows and the model. docs/run-file.md explains every field.",
    "With keep_best, and a score of the model before any training, a run does not end with a worse score than it began with.",
)
UNEQUAL = 1.3
"""Times as many rows as its share that the commonest label has: from then on its share is spoken of"""
PLACE = 44
"""Where comments begin"""


def written_recipe(values: Mapping[str, Any], model: RecipeModel, rows: RecipeRows, agents: int, counted: bool) -> str:
    """The text of a run file. `counted`: the tokens of rows were counted, and not thought of."""
    comments = _comments(values, model, rows, agents, counted)
    lines = [f"# {line}" for line in HEADING]
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", _with(f"{name}:", comments.get(name))]
            lines += [_with(f"  {field}: {_flow(inner)}", comments.get(f"{name}.{field}")) for field, inner in value.items()]
        else:
            lines += ([""] if name == "keep_best" else []) + [_with(f"{name}: {_flow(value)}", comments.get(name))]
    return "\n".join(lines) + "\n"


def _with(text: str, comment: str | None) -> str:
    return text if comment is None else f"{text:{PLACE}}  # {comment}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _comments(values: Mapping[str, Any], model: RecipeModel, rows: RecipeRows, agents: int, counted: bool) -> dict[str, str]:
    return dict(_said(values, model, rows, agents, counted))


def _said(values: Mapping[str, Any], model: RecipeModel, rows: RecipeRows, agents: int, counted: bool) -> Iterator[tuple[str, str]]:
    schedule, train = values["schedule"], values["train"]
    yield "model", f"{model.layers} layers of width {model.width}"
    yield "name", "what agents name in `runs`"
    if rows.commonest is not None and rows.commonest * rows.num_labels >= UNEQUAL:
        text = f"one is on {rows.commonest:.0%} of the held-out rows: if agents have it about as often, label_skew: none under train may score higher"
        yield "task.labels", text
    if "max_length" in values["task"]:
        yield "task.max_length", _length(values["task"], rows, counted)
    wave = schedule.get("wave", 1)
    if wave > 1:
        yield "schedule.wave", f"blocks that as many agents train at once; needs {wave} agents"
        yield "schedule.damping", "; ".join(f"{factor} for waves of {size}" for size, factor in DAMPING.items() if size > 1)
    known = "" if rows.of_agents is not None else f", if all agents have {rows.rows_of_agents:,} rows; say how many with --rows"
    yield "schedule.cycles", f"how many times each block is trained{known}"
    yield "schedule.agents", "another agent for a block in each cycle"
    if "head_start" in schedule:
        yield "schedule.head_start", "of the rows of each label, in a round of heads before the first cycle"
    yield "schedule.always", "trained along in every visit" if schedule["always"] else "nothing but the visited block"
    if "epochs" in train:
        yield "train.epochs", "passes of a visit over its agent's rows"
    yield "train.learning_rate", "of the visited block; too high if the held-out loss rises from the first rounds on: halve it"
    if "always_learning_rate" in train:
        yield "train.always_learning_rate", "of the head"
    yield "corrections.rank", "of small corrections that a visit makes to the layers that it does not train; without: less memory and time"
    yield "compression.policy", "frozen blocks in 8 bits: costs no quality, as measured; int4 for less memory"
    yield "compression.trained", "and what a visit trains begins so, too: far fewer bytes; its delta is added to the exact values"
    yield "evaluate.every", "and before the first round"
    yield "average_versions.last", "of the rounds: their versions averaged, kept if that scores better"
    yield "keep_best", "the model that scored best is the one that the run ends with"
    yield "calibrate", "logits scaled and shifted at the end, as the held-out rows say, if that helps on rows it was not fitted to"
    yield "agents", f"or a list of names; the values are for {agents}"


def _length(task: Mapping[str, Any], rows: RecipeRows, counted: bool) -> str:
    if rows.is_text:
        return "tokens of a window"
    if rows.length > task["max_length"] and task["kind"] == "extractive-qa":
        return f"of a question and a window of its context; 99 of 100 have {rows.length} tokens or fewer, and are cut into several"
    if counted:
        return f"99 of 100 held-out rows have at most {rows.length} tokens"
    return f"a guess by characters, rather too large: {rows.length} for 99 of 100 held-out rows; --model with the model's directory counts tokens"
