"""The outer optimizer of the engine is SGD with momentum, to the bit the same however many rows are looked at at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from fedcybgd.coordinator.domain.aggregate import Aggregate
from fedcybgd.coordinator.domain.jobs.candidates import CandidateBlock
from fedcybgd.coordinator.domain.jobs.payloads import ApplyPayload, Change, Term
from fedcybgd.coordinator.domain.outer import Outer
from fedcybgd.coordinator.engine.apply import add_deltas, apply
from fedcybgd.coordinator.engine.candidates import average
from fedcybgd.coordinator.engine.recompute import recompute
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage import open_store
from fedcybgd.coordinator.storage.local import LocalBlobStore
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.tensors import delta_file

SHAPES = {"matrix": (40, 7), "bias": (5,), "number": ()}
ROUNDS = 4


def stored(store: LocalBlobStore, tensors: dict[str, torch.Tensor]) -> str:
    return write_blob(store, save(tensors))[0]


def changes_of(store: LocalBlobStore, outer: Outer | None, aggregate: Aggregate = "sum") -> tuple[list[Change], list[str | None]]:
    """Rounds of three deltas each, and the velocities after them."""
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=draw, dtype=torch.float32) for name, shape in SHAPES.items()}
    ref = ShardRef(block="b", version=0, codec="exact", digest=stored(store, base | {"buffer": torch.randn(3000, generator=draw)}), size=1)
    changes: list[Change] = []
    velocities: list[str | None] = [None]
    for _ in range(ROUNDS):
        deltas = [{name: 0.01 * torch.randn(shape, generator=draw) for name, shape in SHAPES.items()} for _ in range(3)]
        terms = [Term(digest=stored(store, delta), weight=weight) for delta, weight in zip(deltas, (0.5, 0.3, 0.2), strict=True)]
        changes.append(Change(block=ref, terms=terms, aggregate=aggregate, outer=outer, velocity=velocities[-1]))
        ref, velocity = add_deltas(store, changes[-1])
        velocities.append(velocity)
    return changes, velocities


@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_the_sgd_of_torch(tmp_path: Path, nesterov: bool) -> None:
    store = open_store(tmp_path)
    changes, velocities = changes_of(store, Outer(learning_rate=0.7, momentum=0.9, nesterov=nesterov))
    base = load_file(store.path(changes[0].block.digest))
    weights = {name: torch.nn.Parameter(base[name].clone()) for name in SHAPES}
    sgd = torch.optim.SGD(weights.values(), lr=0.7, momentum=0.9, nesterov=nesterov)
    for change in changes:
        deltas = [(load_file(store.path(term.digest)), term.weight) for term in change.terms]
        for name, weight in weights.items():
            weight.grad = -sum(factor * delta[name] for delta, factor in deltas)  # type: ignore[assignment]
        sgd.step()
    last, velocity = add_deltas(store, changes[-1])
    new, carried = load_file(store.path(last.digest)), load_file(store.path(velocity or ""))
    assert velocity == velocities[-1]
    assert set(carried) == set(SHAPES), "a buffer is not trained"
    assert torch.equal(new["buffer"], base["buffer"])
    for name, weight in weights.items():
        torch.testing.assert_close(new[name], weight.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(carried[name], -sgd.state[weight]["momentum_buffer"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("aggregate", ["sum", "median", "geometric_median"])
def test_a_few_rows_at_a_time_make_the_same_bits_and_so_does_who_makes_them_again(
    tmp_path: Path, aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    changes, velocities = changes_of(store, Outer(learning_rate=0.5, momentum=0.8, nesterov=True), aggregate)
    made = [add_deltas(store, change) for change in changes]
    assert [velocity for _, velocity in made] == velocities[1:]
    assert len({*velocities}) == ROUNDS + 1
    monkeypatch.setattr(delta_file, "NUMBERS", 20)
    for digest in (*(ref.digest for ref, _ in made), *velocities[1:]):
        store.delete(digest or "")
    assert list(recompute(store, changes)) == [(ref.digest, velocity) for ref, velocity in made]
    left = {digest for digest, _ in store.stored()}
    assert left & {ref.digest for ref, _ in made} == {made[-1][0].digest}, "what was begun from is gone again"
    assert left & {*velocities} == {velocities[-1]}


def test_an_average_of_versions_is_of_these_versions(tmp_path: Path) -> None:
    """They are made again some rows at a time, each from the one before and from what that carries on."""
    store = open_store(tmp_path)
    changes, _ = changes_of(store, Outer(learning_rate=0.5, momentum=0.8, nesterov=True))
    made = [add_deltas(store, change)[0] for change in changes]
    found = average(store, CandidateBlock(base=made[0], changes=changes[1:], rounds=[0, 1, 2, 1], last=made[-1]))
    second, third, fourth = (load_file(store.path(ref.digest)) for ref in made[1:])
    for name, tensor in load_file(store.path(found.digest)).items():
        torch.testing.assert_close(tensor, (second[name] + 2 * third[name] + fourth[name]) / 4)


def test_nobody_is_told_that_the_delta_leads_from_version_to_version(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for outer, kinds in ((None, ["delta"]), (Outer(learning_rate=1.0, momentum=0.5, nesterov=False), [])):
        [change, *_], _ = changes_of(store, outer)
        alone = change.model_copy(update={"terms": change.terms[:1], "codecs": ["exact"]})
        made = apply(store, ApplyPayload(round=0, changes=[alone]))
        assert [patch.kind for patch in made.patches] == kinds
        assert (set(made.velocities) == {"b"}) == (outer is not None)
