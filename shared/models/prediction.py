"""What a fine-tuned model says of rows: a label and how likely it is, the loss of a text, how a prompt goes on, an answer. In float32, on a CPU."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from fedcybgd.shared.contract.errors import DataError, FedError
from fedcybgd.shared.contract.predictions import Prediction
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.contract.words import CLASSIFICATIONS
from fedcybgd.shared.files.configuration import in_a_line, plain
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.models.answering import answers
from fedcybgd.shared.models.batches import Batch, forward_logits, row_losses
from fedcybgd.shared.models.image_rows import ImageEncoder
from fedcybgd.shared.models.model_classes import AUTO_CLASSES, settings_of, tasks_of
from fedcybgd.shared.models.positions import usable_positions
from fedcybgd.shared.models.question_rows import QuestionEncoder
from fedcybgd.shared.models.row_encoder import RowEncoder, row_encoder
from fedcybgd.shared.models.text_rows import Features, LanguageEncoder, TextEncoder

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TOKENS_A_BATCH = 2048
"""Padded tokens of a batch at the most: bounds the activations and, for language models, the logits"""
ROWS_AT_ONCE = 256
"""That are read before their shortest are batched together"""
LONGEST = 4096
"""Tokens of a row where neither run nor model bound them"""


class ModelUnusable(FedError):
    """A directory that holds no model that could be asked."""

    code = "model_unusable"


def spec_of(directory: Path, max_length: int | None = None) -> TaskSpec:
    """The task of the model in a directory, by its configuration; no weight is read. Raises `ModelUnusable`, `ModelUnknown`."""
    if (directory / "adapter_config.json").exists():
        raise ModelUnusable(f"{directory} holds adapters alone, without their model: export the run in the form `merged`")
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnusable(f"{directory} has no config.json: it is no model directory") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"{directory / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelUnusable(f"{directory / 'config.json'} is no JSON object")
    plain(config)  # refuses what needs code of its own
    settings = settings_of(config)
    named = (settings.architectures or ["none"])[0]
    task = next((task for task in tasks_of(settings) if named in _names(AUTO_CLASSES[task]._model_mapping[type(settings)])), None)
    if task is None:
        raise ModelUnusable(
            f"{directory} holds a {named}, which has not learned a task: what `fedcoord run export` writes can be asked, and a base model cannot"
        )
    names = [settings.id2label[index] for index in sorted(settings.id2label)] if task in CLASSIFICATIONS else None
    are_numbers = names is None or all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return TaskSpec(
        task=task, num_labels=None if names is None else len(names), label_names=None if are_numbers else names, max_length=max_length or LONGEST
    )  # fmt: skip


def _names(kinds: Any) -> set[str]:
    return {kind.__name__ for kind in (kinds if isinstance(kinds, Sequence) else [kinds])}


class Predictor:
    """The model of a directory that transformers has saved, in memory as a whole."""

    def __init__(self, directory: Path, spec: TaskSpec) -> None:
        """Raises `ModelUnusable`, also where weights of the model are not there; `TokenizerUnusable`."""
        self._model = _loaded(directory, spec)
        self.positions = usable_positions(self._model) if spec.task != "image-classification" else None
        self.spec = spec.model_copy(update={"max_length": min(spec.max_length, self.positions or spec.max_length)})
        self._encoder: RowEncoder = row_encoder(directory, self.spec)

    def predictions(self, examples: Iterable[Row], source: str) -> Iterator[Prediction]:
        """Of each row of the file called `source`, in its order: its label, its answer, or its loss. Raises `DataError`, with the row."""
        if isinstance(self._encoder, QuestionEncoder):
            for said in answers(self._model, self._encoder, examples, source, TOKENS_A_BATCH):
                yield Prediction(answer=said.text, margin=said.margin)
            return
        for some in _some(examples):
            if self.spec.is_classification:
                yield from self._labelled(some, source)
            else:
                yield from self._losses(some, source)

    def continuations(self, examples: Iterable[Row], source: str, most: int) -> Iterator[Prediction]:
        """How each row's `prompt` goes on, always by the likeliest token, by `most` of them at the most. Raises `DataError`, with the row.

        A prompt that is too long loses its beginning.
        """
        assert isinstance(self._encoder, LanguageEncoder)
        room = (self.positions or LONGEST) - most
        if room < 1:
            raise ModelUnusable(f"the model has {self.positions} positions: it cannot go on by {most} tokens; ask for fewer")
        for some in _some(examples):
            prompts = [self._encoder.prompt(row, number, source)[-room:] for number, row in some]
            found: dict[int, Prediction] = {}
            for places in _batches([len(prompt) for prompt in prompts], alike=True):  # without padding: no model can stumble over it
                found |= zip(places, self._continued([prompts[place] for place in places], most), strict=True)
            yield from (found[place] for place in range(len(some)))

    def _labelled(self, some: Sequence[tuple[int, Row]], source: str) -> Iterator[Prediction]:
        rows = [(number, {"label": 0, **row}) for number, row in some]
        if isinstance(self._encoder, TextEncoder):
            features = [feature for number, row in rows for feature in self._encoder.of_row(row, number, source)]
            batches = [(places, self._encoder.collate([features[p] for p in places])) for places in _batches(_lengths(features))]
        else:
            assert isinstance(self._encoder, ImageEncoder)
            images = self._encoder.encoded([row for _, row in rows], source)
            batches = [(places, images.batch(places)) for places in _batches([self._encoder.width] * len(rows))]
        found: dict[int, Prediction] = {}
        for places, batch in batches:
            with torch.inference_mode():
                best = forward_logits(self._model, batch).softmax(-1).max(-1)
            for place, label, probability in zip(places, best.indices.tolist(), best.values.tolist(), strict=True):
                found[place] = Prediction(label=label, probability=probability)
        yield from (found[place] for place in range(len(rows)))

    def _losses(self, some: Sequence[tuple[int, Row]], source: str) -> Iterator[Prediction]:
        assert isinstance(self._encoder, LanguageEncoder)
        features, rows = list[Features](), list[int]()
        for place, (number, row) in enumerate(some):
            try:
                made = self._encoder.of_row(row, number, source)
            except DataError as error:
                if "row" in error.detail:
                    raise
                made = []  # a single token: nothing of it is predicted
            features += made
            rows += [place] * len(made)
        sums, counts = [0.0] * len(some), [0] * len(some)
        for places in _batches(_lengths(features)):
            losses, predicted = self._measured(self._encoder.collate([features[place] for place in places]))
            for place, loss, count in zip(places, losses, predicted, strict=True):
                sums[rows[place]] += loss
                counts[rows[place]] += count
        yield from (Prediction(loss=s / n if n else None, tokens=n) for s, n in zip(sums, counts, strict=True))

    @torch.inference_mode()
    def _measured(self, batch: Batch) -> tuple[list[float], list[int]]:
        losses, predicted = row_losses(forward_logits(self._model, batch), batch, self.spec.task)
        return losses.tolist(), predicted.tolist()

    @torch.inference_mode()
    def _continued(self, prompts: Sequence[Sequence[int]], most: int) -> list[Prediction]:
        assert isinstance(self._encoder, LanguageEncoder)
        given, end, model = torch.tensor(prompts), self._encoder.end, self._model
        how = transformers.GenerationConfig(max_new_tokens=most, do_sample=False, pad_token_id=self._encoder.pad, eos_token_id=end)
        written = model.generate(given, attention_mask=torch.ones_like(given), generation_config=how)[:, given.shape[1] :].tolist()  # type: ignore[operator]
        rows = [list(itertools.takewhile(lambda token: token != end, row)) for row in written]
        decode = self._encoder.tokenizer.decode
        return [
            Prediction(continuation=decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False), tokens=len(row))
            for row in rows
        ]


def _loaded(directory: Path, spec: TaskSpec) -> nn.Module:
    try:
        model, told = AUTO_CLASSES[spec.task].from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelUnusable(f"{directory} cannot be loaded: {in_a_line(error)}") from error
    if lacking := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
        raise ModelUnusable(f"{directory} lacks weights ({', '.join(lacking[:3])}): it would say anything; export the run anew")
    made: nn.Module = model.eval()
    return made


def _some(examples: Iterable[Row]) -> Iterator[list[tuple[int, Row]]]:
    """Examples in parts, with the numbers of their rows, from 1."""
    numbered = enumerate(examples, 1)
    while some := list(itertools.islice(numbered, ROWS_AT_ONCE)):
        yield some


def _lengths(features: Iterable[Features]) -> list[int]:
    return [len(feature.ids) for feature in features]


def _batches(lengths: Sequence[int], alike: bool = False) -> Iterator[list[int]]:
    """Places of rows that make a batch: the shortest first, of one length if they have to be `alike`."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and ((len(batch) + 1) * lengths[place] > TOKENS_A_BATCH or (alike and lengths[place] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
