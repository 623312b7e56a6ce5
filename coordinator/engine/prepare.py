"""Makes a run's model from an added one: its blocks for the task, a fresh head where the task needs one, its configuration."""

import json
from collections.abc import Collection
from functools import partial

import torch
from torch import nn

from fedcybgd.coordinator.domain.fresh_parts import fresh_in, fresh_part
from fedcybgd.coordinator.domain.jobs.measurements import HeldOutRef
from fedcybgd.coordinator.domain.jobs.payloads import PreparePayload, PrepareResult
from fedcybgd.coordinator.domain.model_blocks import StoredBlock, TensorShape
from fedcybgd.coordinator.engine.evaluate import held_out_examples
from fedcybgd.coordinator.engine.run_config import padding_of, task_config
from fedcybgd.coordinator.engine.shards import Piece, as_directory, from_blob, from_tensor, shard_header, write_json, write_shard
from fedcybgd.coordinator.errors import Invalid
from fedcybgd.coordinator.storage import EngineStore
from fedcybgd.shared.contract.adapters import is_factor
from fedcybgd.shared.contract.adapters import select as select_matrices
from fedcybgd.shared.contract.block_names import HEAD, of_labels, select
from fedcybgd.shared.models.adapters import initial, linear_weights
from fedcybgd.shared.models.assembly import names_by_canonical, skeleton
from fedcybgd.shared.models.blocks import FRESHLY_MADE, BlockSpec, partition
from fedcybgd.shared.models.model_classes import sees_what_follows, settings_of
from fedcybgd.shared.models.positions import usable_positions
from fedcybgd.shared.models.row_encoder import RowEncoder, row_encoder


class RunRefused(Invalid):
    code = "run_refused"


def prepare(store: EngineStore, payload: PreparePayload) -> PrepareResult:
    """The blocks of the run at version 0. Shards of the added model are used as they are wherever they fit.

    What the added model lacks of its head, or has for another number of labels, is made afresh. Raises `RunRefused` when block patterns
    mean nothing, when a fresh part would never be trained, or when the model cannot learn the task; `AdaptersRefused`; `DataError` when the held-out file
    does not fit the task.
    """
    if payload.task == "causal-lm" and sees_what_follows(settings_of(payload.config)):
        raise RunRefused(
            f"a model of the type {payload.config['model_type']} is an encoder, in which every token sees those after it: it cannot learn "
            "causal-lm; take a decoder, or a checkpoint that was trained as one (is_decoder in its config.json)"
        )
    config = task_config(payload)
    model = skeleton(config, payload.task)
    if payload.task != "image-classification":
        _check_length(model, payload.max_length)
    blocks = partition(model, payload.layers_per_block)
    names = [b.name for b in blocks]
    unused = {b.name for b in blocks if not b.is_used}
    trained = [name for name in select(payload.patterns, names) if name not in unused]
    if not trained:
        raise RunRefused(
            f"{', '.join(sorted(unused))} has no part in {payload.task} with this model, so nothing would train it", blocks=names
        )
    always = set(select(payload.always, names))
    if patterns := [p for p in payload.always if p not in names]:
        raise RunRefused(f"`always` names its blocks one by one, without patterns like {', '.join(patterns)}", blocks=names)
    visited = [name for name in trained if name not in always] or trained
    available = {t.name: tuple(t.shape) for block in payload.blocks for t in block.tensors}
    fresh = _check_fresh(blocks, available, visited, always)
    values = _initialise(model, fresh, payload.seed)
    if payload.head_start == "class_means":
        values |= _unset(blocks, fresh, payload.num_labels)
    linear = _corrected(model, payload)
    stored = [_store(store, block, payload, values, linear) for block in blocks]
    config["pad_token_id"] = padding_of(model)
    with as_directory(store, payload.files) as folder:
        (folder / "config.json").write_text(json.dumps(config))
        encoder = row_encoder(folder, payload)
    config["pad_token_id"] = encoder.pad
    files = [*payload.files, write_json(store, "config.json", config)]
    rows = _count(store, payload.held_out, payload, encoder) if payload.held_out else None
    return PrepareResult(files=files, blocks=stored, trained=visited, held_out_rows=rows)


def _corrected(model: nn.Module, payload: PreparePayload) -> frozenset[str]:
    """The matrices that visits may correct. Raises `AdaptersRefused`."""
    said = payload.corrections
    return frozenset(select_matrices(said.matrices, said.rank, linear_weights(model), "corrections") if said is not None else ())


def _check_length(model: nn.Module, max_length: int) -> None:
    positions = usable_positions(model)
    if positions is not None and positions < max_length:
        raise RunRefused(
            f"task.max_length is {max_length}, but this model has only {positions} positions for the tokens of a row", positions=positions
        )


def _count(store: EngineStore, held_out: HeldOutRef, payload: PreparePayload, encoder: RowEncoder) -> int:
    """The rows of the held-out file, each encoded once: one that cannot be scored is refused now and not in the middle of the run."""
    with held_out_examples(store, held_out, payload) as given:
        encoder.encoded(given, held_out.name)
        return given.all_of_them()


def _check_fresh(blocks: list[BlockSpec], available: dict[str, tuple[int, ...]], visited: list[str], always: set[str]) -> list[str]:
    """The names of what is made afresh. Raises `RunRefused` where nothing would train it."""
    fresh: list[str] = []
    for block in blocks:
        tensors = {t.name: t.shape for t in block.tensors}
        if not block.is_used:  # nobody reads what is in it
            fresh += fresh_in(tensors, available)
            continue
        note = fresh_part(block.name, tensors, available)
        if note is None:
            continue
        fresh += fresh_in(tensors, available)
        if block.kind not in FRESHLY_MADE:
            raise RunRefused(f"the added model lacks tensors of {block.name}: {', '.join(fresh[:5])}", missing=fresh[:50])
        if block.name not in always and visited != [block.name]:
            raise RunRefused(
                f"{note}; it must be trained along in every visit: write `always: [{block.name}]` under `schedule`", block=block.name
            )
    return fresh


def _initialise(model: nn.Module, fresh: list[str], seed: int) -> dict[str, torch.Tensor]:
    """Fresh tensors as the model's own initialisation makes them, float32, from `seed` alone."""
    names = names_by_canonical(model)
    factors = initial(model, [name for name in fresh if is_factor(name)], seed)
    places = {name: names[name].rpartition(".") for name in fresh if name not in factors}
    if not places:
        return factors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, _, leaf in places.values():
            module = model.get_submodule(path)
            old = module._parameters[leaf]
            assert old is not None
            module._parameters[leaf] = nn.Parameter(torch.zeros(old.shape))
        for path in dict.fromkeys(path for path, _, _ in places.values()):
            model._init_weights(model.get_submodule(path))  # type: ignore[operator]
    made = {name: model.get_submodule(path).get_parameter(leaf).detach() for name, (path, _, leaf) in places.items()}
    return made | factors


def _unset(blocks: list[BlockSpec], fresh: list[str], labels: int | None) -> dict[str, torch.Tensor]:
    """The rows of a fresh classifier's head at zero: so visits see which nobody has set yet."""
    shapes = {tensor.name: tensor.shape for block in blocks if block.name == HEAD for tensor in block.tensors}
    name = of_labels(shapes, labels or 0)
    return {name: torch.zeros(shapes[name])} if name in fresh else {}


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _store(
    store: EngineStore, block: BlockSpec, payload: PreparePayload, values: dict[str, torch.Tensor], linear: Collection[str]
) -> StoredBlock:
    trainable = [TensorShape(name=t.name, shape=list(t.shape), linear=t.name in linear) for t in block.tensors if t.is_parameter]
    wanted = {(t.name, t.shape) for t in block.tensors}
    same = next((b for b in payload.blocks if {(t.name, tuple(t.shape)) for t in b.tensors} == wanted), None)
    if same is not None:
        digest, size = same.digest, same.size
    else:
        holders = {t.name: b for b in payload.blocks for t in b.tensors}
        pieces: list[Piece] = []
        for tensor in block.tensors:
            if tensor.name in values:
                value = values[tensor.name]
                pieces.append(from_tensor(tensor.name, tensor.shape, torch.float32, partial(_same, value)))
            else:
                held = holders[tensor.name].digest
                header = shard_header(store, held)
                pieces.append(from_blob(store, held, header, header.tensors[tensor.name], tensor.name))
        digest, size = write_shard(store, pieces)
    return StoredBlock(name=block.name, kind=block.kind, digest=digest, size=size, num_parameters=block.num_parameters, tensors=trainable)
