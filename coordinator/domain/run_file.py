"""The run file: everything an operator decides about a run, validated, with errors that name the field and its line."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from fedcybgd.coordinator.domain import method_fields
from fedcybgd.coordinator.domain.adapters_section import AdaptersSection
from fedcybgd.coordinator.domain.aggregate import Average, HeadAverage
from fedcybgd.coordinator.domain.averaging_section import WholeSection
from fedcybgd.coordinator.domain.corrections_section import CorrectionsSection
from fedcybgd.coordinator.domain.ending import AverageVersionsSection, StopSection, check_calibration, check_scores
from fedcybgd.coordinator.domain.schedule_section import ScheduleSection
from fedcybgd.coordinator.domain.section import Section
from fedcybgd.coordinator.domain.task_section import GIVEN, TaskSection
from fedcybgd.coordinator.domain.yaml_lines import MOST_PROBLEMS, composed, line_of, repeated
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.shared.contract.block_names import HEAD
from fedcybgd.shared.contract.digests import Digest
from fedcybgd.shared.contract.training import Training
from fedcybgd.shared.contract.words import DeltaCodec, LabelSkew, Name, problem_in_words
from fedcybgd.shared.files.table_format import TableFormat


class RunFileInvalid(Invalid):
    code = "run_file_invalid"


class TrainSection(Training, Section):
    learning_rate: float = Field(3e-4, gt=0, lt=10, description="of the visited block, in the first cycle")
    learning_rate_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate from cycle to cycle")
    always_learning_rate: float | None = Field(None, gt=0, lt=10, description="of the blocks trained along; default: learning_rate")
    always_learning_rate_decay: float = Field(1.0, gt=0, le=1, description="the same factor for the blocks trained along")
    label_skew: LabelSkew | None = Field(
        None,
        description="what the loss does where agents have different labels; default: smoothed for classification, else none",
    )

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "TrainSection":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give `steps` or `epochs`, not both")
        return self


class EvaluateSection(TableFormat, Section):
    held_out: str = Field(min_length=1, description="CSV, JSONL or Parquet file on held-out rows; relative to the run file")
    columns: dict[str, str] = Field(default_factory=dict, description="field: column, where they differ")
    every: Literal["cycle", "round", "end"] | Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        "cycle", description="or a number of rounds; the model is scored before the first round too, but for `end`"
    )
    digest: Digest | None = Field(None, description="of the uploaded held-out file; filled in by `fedcoord run create`")


class AdmissionSection(Section):
    max_relative_norm: float | None = Field(
        10.0,
        gt=0,
        description="a delta whose norm is more than this many times its block's is rejected; not for blocks trained along. "
        "null: no norm is too large, nor out of the band",
    )
    norm_band: float | None = Field(
        10.0,
        gt=1,
        description="a delta is rejected that goes this many times as far as this run's deltas of such blocks usually do, farther than "
        "its steps can go, or against them; blocks trained along too. null: never",
    )
    gate: Literal["off", "warn", "enforce"] = Field(
        "warn",
        description="when the held-out loss rises out of all proportion to what it does in this run. warn: an event, and a pause when the "
        "model is damaged; enforce: a round is scored before it counts, and is halved or refused",
    )
    average: Average = Field("mean", description="how a block is changed that three or more agents trained in a round")


class CompressionSection(Section):
    policy: Literal["none", "hybrid", "int8", "int4", "auto"] = Field(
        "int8",
        description="how frozen blocks reach an agent; hybrid: the paper's; auto: as faithfully as fits the agent; under `whole` none; under `adapters` not hybrid, auto",
    )
    trained: Literal["exact", "int8"] = Field(
        "exact",
        description="how what a visit trains reaches it; int8: it begins at rounded values, and its delta is added to the exact ones",
    )
    drop_ratio: float = Field(0.5, ge=0, le=0.9, description="hybrid: share of the layers not yet updated that is dropped at the most")
    prune_ratio: float = Field(0.25, ge=0.01, le=0.9, description="hybrid and auto: share of a layer's width that pruning removes")
    floor: float | None = Field(
        None, ge=-1, le=1, description="cosine between a block's gradient in the emulator and in the real model that a plan must reach"
    )
    below_floor: Literal["upgrade", "refuse"] = Field(
        "upgrade", description="a plan under the floor becomes more faithful, or pauses the run"
    )
    delta_patches: bool = Field(False, description="an agent may fetch another's delta where that is cheapest; it says more of its rows")
    calibration_rows: int = Field(64, ge=0, le=100_000, description="held-out rows on which emulators are measured; 0: never")


class DeltaSection(Section):
    codec: DeltaCodec = Field("int8", description="how deltas travel")
    error_feedback: bool = Field(False, description="an agent carries what the codec left out to its next visit of the same block")


class ExposureSection(Section):
    max_exact_blocks: int | None = Field(None, ge=1, le=100_000, description="blocks that one agent may receive exact, in the whole run")


class RunFile(Section):
    name: Name = Field(description="how people call the run; free again once a run of that name has ended")
    model: Name = Field(description="name of an added model")
    task: TaskSection = Field(description="what is learned")
    method: Name = Field("block-cycle", description="the federated method: who trains what, and what becomes of the deltas")
    whole: WholeSection | None = Field(None, description="only under `method: whole`: who trains in a round, and what deltas weigh")
    adapters: AdaptersSection | None = Field(
        None, description="only under `method: adapters`: beside which matrices, how large, and how those of several agents become one"
    )
    corrections: CorrectionsSection | None = Field(
        None, description="whether visits correct the layers that they do not train; only under `method: block-cycle`; never, if left out"
    )
    schedule: ScheduleSection = Field(ScheduleSection(), description="which blocks, in which order, by whom")
    train: TrainSection = Field(TrainSection(), description="how a visit trains")
    evaluate: EvaluateSection | None = Field(None, description="how the model is scored; never, if left out")
    average_versions: AverageVersionsSection | None = Field(
        None, description="whether the run ends with an average of versions; never, if left out"
    )
    keep_best: bool = Field(False, description="whether the run ends with the model that scored best, where that is not its last one")
    calibrate: bool = Field(
        False, description="whether the head of a classifier is calibrated on the held-out rows at the end, where that helps"
    )
    stop: StopSection | None = Field(None, description="when the run ends before its rounds are done; never, if left out")
    compression: CompressionSection = Field(CompressionSection(), description="what agents download and hold")
    delta: DeltaSection = Field(DeltaSection(), description="what agents send")
    exposure: ExposureSection = Field(ExposureSection(), description="how much of the model one agent may see exact")
    admission: AdmissionSection = Field(AdmissionSection(), description="which deltas are rejected")
    agents: Literal["all"] | Annotated[list[Name], Field(min_length=1)] = Field(
        "all", description="who takes part: all agents, or these; who is not there at the start joins when it comes"
    )
    lease_s: float = Field(60, ge=2, le=86_400, description="seconds that a lease holds without renewal")
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="of everything that is drawn: a fresh head, a random order, a fraction of the agents, the order of rows",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_what_the_method_leaves_no_choice_of(cls, values: Any) -> Any:
        return method_fields.filled(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _fields_mean_something(self) -> "RunFile":
        method_fields.check(self.method, self)
        return self

    def in_cycle(self, cycle: int) -> "RunFile":
        """What it says of one cycle, counted from 0: the first may have a wave, a damping and a length of visits of its own."""
        first = self.schedule.first_cycle
        if cycle or first is None:
            return self
        schedule = self.schedule.model_copy(update=first.instead("wave", "damping"))
        steps = first.instead("steps", "epochs")
        train = self.train.model_copy(update={"steps": None, "epochs": None} | steps) if steps else self.train
        return self.model_copy(update={"schedule": schedule, "train": train})

    @property
    def label_skew(self) -> LabelSkew:
        """What visits are told. It costs nothing where shares are equal."""
        usual: LabelSkew = "smoothed" if self.task.is_classification else "none"
        return self.train.label_skew or usual

    @property
    def head_average(self) -> HeadAverage:
        usual: HeadAverage = "by_label" if self.task.is_classification else "damped"
        return self.schedule.head_average or usual

    @model_validator(mode="after")
    def _labels_are_there(self) -> "RunFile":
        if not self.task.is_classification and self.label_skew != "none":
            raise ValueError(f"train.label_skew: {self.task.kind} has no labels; leave it out, or say none (not {self.label_skew!r})")
        if not self.task.is_classification and self.head_average == "by_label":
            raise ValueError(f"schedule.head_average: {self.task.kind} has no labels; say damped or mean (not 'by_label')")
        if self.schedule.head_start != "fresh":
            self._check_head_start()
        if self.schedule.head_average == "by_label" and self.admission.average != "mean":
            text = f"schedule.head_average: by_label is a mean; it does not go with admission.average {self.admission.average!r}"
            raise ValueError(text)
        return self

    def _check_head_start(self) -> None:
        field = f"schedule.head_start: {self.schedule.head_start}"
        if not self.task.is_classification:
            raise ValueError(f"{field} is for classifications, and {self.task.kind} has no labels; leave it out, or say fresh")
        if HEAD not in self.schedule.always:
            raise ValueError(f"{field} needs a head that is trained along: write `always: [{HEAD}]` under `schedule`")
        if self.label_skew == "none":
            raise ValueError(f"{field} does not go with train.label_skew none, with which each agent moves the rows of all labels")

    @field_validator("calibrate")
    @classmethod
    def _there_is_something_to_calibrate_on(cls, value: bool, others: ValidationInfo) -> bool:
        if value and "evaluate" in others.data and "task" in others.data:
            check_calibration(others.data["task"].kind, others.data["task"].is_classification, others.data["evaluate"] is not None)
        return value

    @field_validator("average_versions", "keep_best", "stop")
    @classmethod
    def _scores_are_there(cls, value: Any, others: ValidationInfo) -> Any:
        if "evaluate" in others.data:  # else it is wrong itself, and told of alone
            evaluate = others.data["evaluate"]
            check_scores(value, None if evaluate is None else evaluate.every, others.data.get("average_versions"))
        return value


def parse_run_file(text: str, source: str = "run file") -> RunFile:
    """Read a YAML run file. Raises `RunFileInvalid`; its message has one line for each wrong field, with the line in the file."""
    try:
        tree = composed(text)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise RunFileInvalid(f"{source}{where}: this is no YAML: {getattr(error, 'problem', error)}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # a date that is none, a !!int of nothing
        raise RunFileInvalid(f"{source}: a value cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise RunFileInvalid(f"{source}: a run file is a mapping; it needs at least name, model and task")
    problems = list(repeated(tree, ""))
    try:
        run = RunFile.model_validate(values, context=GIVEN)
    except ValidationError as error:
        problems += [(line_of(tree, e["loc"]), _field(e["loc"], values), _problem(e)) for e in error.errors()[:MOST_PROBLEMS]]
    if not problems:
        return run
    problems = sorted(set(problems), key=lambda p: (p[0], p[1]))
    lines = [f"{source} line {line}: {field}: {message}" for line, field, message in problems]
    raise RunFileInvalid(
        "\n".join(lines), problems=[{"line": line, "field": field, "message": message} for line, field, message in problems]
    )


def said(spec: RunFile) -> dict[str, Any]:
    """What is not at its default, as YAML and JSON have it."""
    return spec.model_dump(mode="json", exclude_defaults=True)


def written(spec: RunFile, agents: int) -> str:
    """YAML of what is not at its default, with the number of agents in place of their names."""
    return yaml.safe_dump(said(spec) | {"agents": agents}, sort_keys=False)


def checked(values: Mapping[str, object]) -> RunFile:
    """A run file that is given as a mapping. Raises `RunFileInvalid`; its message has one line for each wrong field."""
    try:
        return RunFile.model_validate(values, context=GIVEN)
    except ValidationError as error:
        problems = [{"field": _field(e["loc"], values), "message": _problem(e)} for e in error.errors()]
        raise RunFileInvalid("\n".join(f"{p['field']}: {p['message']}" for p in problems), problems=problems) from error


def _problem(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    if error["type"] == "missing":
        return "this field is missing"
    message = problem_in_words(error)
    shown = error.get("input")
    quoted = ", as YAML reads it; in quotes it is text" if error["type"] == "string_type" else ""  # no, 0x1F, 2024-01-01
    return message if isinstance(shown, (dict, list)) else f"{message} (not {shown!r:.60}{quoted})"


def _field(loc: tuple[int | str, ...], values: Any) -> str:
    # pydantic adds the names of union members to the location; only what is in the file helps the reader.
    path: list[str] = []
    for position, part in enumerate(loc):
        inside = (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        )
        if inside:
            values = values[part]
        elif position < len(loc) - 1 or not isinstance(values, dict):
            continue
        path.append(str(part))
    return ".".join(path) or "run file"
