"""The text that an exported model says of itself: where it comes from, what was done, what came of it, and how to load it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedcybgd.coordinator.domain.model_blocks import StoredBlock
from fedcybgd.coordinator.domain.run_file import RunFile, written
from fedcybgd.shared.contract.digests import Digest, digest_of
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.score_words import cells, kind_of, loss, measures
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import BytesView
from fedcybgd.shared.contract.words import ExportForm, Task

NAME = "README.md"
CLASSES: dict[Task, str] = {
    "text-classification": "AutoModelForSequenceClassification", "causal-lm": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification", "extractive-qa": "AutoModelForQuestionAnswering",
}  # fmt: skip
PIPELINES: dict[Task, str] = {
    "text-classification": "text-classification", "causal-lm": "text-generation", "image-classification": "image-classification",
    "extractive-qa": "question-answering",
}  # fmt: skip
READERS: dict[Task, tuple[str, str]] = {
    "text-classification": ("tokenizer", "AutoTokenizer"), "causal-lm": ("tokenizer", "AutoTokenizer"),
    "image-classification": ("processor", "AutoImageProcessor"), "extractive-qa": ("tokenizer", "AutoTokenizer"),
}  # fmt: skip
"""What turns rows into what the model takes: a name for it, and its class."""

CALIBRATED = (
    "Its head was calibrated on these held-out rows, with temperature {:.3g}. The score of this model is of each half of them, "
    "calibrated with the other half."
)


@dataclass(frozen=True)
class CardFacts:
    """What is known of a run's present model."""

    run: str
    base: str
    base_blocks: Sequence[StoredBlock]
    spec: RunFile
    rounds_done: int
    rounds_total: int
    agents: int
    scores: Sequence[tuple[int, Score]]
    """after how many rounds, the oldest first"""
    sent: BytesView
    whole_model_bytes: int
    made_with: str
    """version of the coordinator"""
    form: ExportForm = "merged"
    kept: Score | None = None
    """of the model that the run ended with, where that is not its last version"""
    temperature: float | None = None
    """that its head is calibrated with, on the held-out rows"""
    head: Score | None = None
    """of another run, in which pooler and head alone were trained as often"""


def base_digest(blocks: Sequence[StoredBlock]) -> Digest:
    """Of the base model's weights: of one line `block digest` a block, in model order."""
    return digest_of("".join(f"{block.name} {block.digest}\n" for block in blocks).encode())


def model_card(facts: CardFacts) -> str:
    """Markdown. The same facts give the same text. Names of agents are not in it."""
    task = facts.spec.task.kind
    library = "transformers" if facts.form == "merged" else "peft"
    lines = [
        "---", f"library_name: {library}", f"pipeline_tag: {PIPELINES[task]}", "tags: [federated-learning, fedcybgd]", "---", "",
        f"# {facts.run}", "",
        f"{_trained(facts)}, fine-tuned together by {counted(facts.agents, 'agent')} on data that stayed with them.", "",
        "| | |", "|---|---|",
        f"| base model | `{facts.base}`, weights `{base_digest(facts.base_blocks)}` |",
        f"| method | `{facts.spec.method}`, {facts.rounds_done} of {counted(facts.rounds_total, 'round')} |",
        f"| sent to agents, received | {facts.sent.down / 1e6:,.1f} MB, {facts.sent.up / 1e6:,.1f} MB; the model has {facts.whole_model_bytes / 1e6:,.1f} MB |",
        f"| made with | fedcybgd {facts.made_with} |", "",
        "How the weights came to be, delta by delta and signed, stands in `provenance.json`; `fedcoord verify provenance.json` checks it.", "",
        "## Scores", "", *_scores(facts), "",
        "## Use", "", "```python", f"from transformers import {READERS[task][1]}, {CLASSES[task]}", *_use(facts), "```", "",
        "## Run file", "", "What is not named has the default of that version. Agents are counted, not named.", "",
        *("    " + line for line in written(facts.spec, facts.agents).splitlines()), "",
        "The licence of the base model, and what its card says of its limits, go for this model, too.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _trained(facts: CardFacts) -> str:
    said = facts.spec.adapters
    return f"All parameters of `{facts.base}`" if said is None else f"Adapters of rank {said.rank} beside the layers of `{facts.base}`"


def _use(facts: CardFacts) -> list[str]:
    (reader, made_by), kind = READERS[facts.spec.task.kind], CLASSES[facts.spec.task.kind]
    tokenizer = f'{reader} = {made_by}.from_pretrained(".")'
    if facts.form == "merged":
        return ["", tokenizer, f'model = {kind}.from_pretrained(".")']
    labels = facts.spec.task.num_labels
    base = (
        f'{kind}.from_pretrained("{facts.base}", dtype="float32"{f", num_labels={labels}, ignore_mismatched_sizes=True" if labels else ""})'
    )
    return ["from peft import PeftModel", "", tokenizer, f'model = PeftModel.from_pretrained({base}, ".")']


def _scores(facts: CardFacts) -> list[str]:
    made = [(str(rounds), score) for rounds, score in facts.scores if score.loss is not None]
    if facts.kept is not None:
        made.append(("this model", facts.kept))
    if not made:
        return ["It was not scored on held-out rows."]
    chosen = made[:1] + (made[-1:] if len(made) > 1 else [])
    kind = kind_of([score for _, score in made])
    lines = [f"On {made[-1][1].rows:,} held-out rows, ± one standard error.", ""]
    columns = measures(kind)
    lines += ["| after rounds | " + " | ".join(columns) + " | loss |", "|---|" + "---|" * (len(columns) + 1)]
    if facts.head is not None:
        chosen.insert(1, ("head alone, trained as often", facts.head))
    for rounds, score in chosen:
        after = f"{rounds} (base model)" if rounds == "0" else rounds
        lines.append(f"| {after} | {' | '.join(cells(score, kind))} | {loss(score)} |")
    last = made[-1][1]
    if last.majority is not None:
        lines += ["", f"Saying the commonest label always would have an accuracy of {last.majority:.2%}."]
    if last.labels_never_right:
        lines.append(f"Of {last.labels_never_right} of {last.labels_held_out} labels no row is right.")
    if facts.temperature is not None:
        lines += ["", CALIBRATED.format(facts.temperature)]
    return lines
