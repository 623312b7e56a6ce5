"""Robust means of deltas against numpy: some rows at a time, in every codec's float32, and not moved by what is out of line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from safetensors.torch import save_file

from fedcybgd.coordinator.domain.aggregate import Aggregate, chosen
from fedcybgd.coordinator.domain.jobs.payloads import Change, Term
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.storage import open_store
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import ShardRef

SHAPES = {"w": (40, 33), "b": (7,), "one": ()}
DRAW = np.random.default_rng(3)


def block(scale: float = 1.0) -> dict[str, np.ndarray]:
    return {name: np.asarray(scale * DRAW.standard_normal(shape), dtype=np.float32) for name, shape in SHAPES.items()}


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in SHAPES]).astype(np.float64)


def stored(folder: Path, tensors: dict[str, np.ndarray], **metadata: str) -> str:
    path = folder / "new.safetensors"
    save_file({name: torch.from_numpy(np.array(t)) for name, t in tensors.items()}, path, metadata or None)
    with open_store(folder / "blobs").writer() as writer:
        writer.write(path.read_bytes())
    return writer.digest


def applied(
    folder: Path, aggregate: Aggregate, base: dict[str, np.ndarray], deltas: list[dict[str, np.ndarray]], weights: list[float]
) -> np.ndarray:
    """What the engine makes of it."""
    store = open_store(folder / "blobs")
    ref = ShardRef(block="head", version=0, codec="exact", digest=stored(folder, base), size=1)
    terms = [Term(digest=stored(folder, delta, codec="float32"), weight=weight) for delta, weight in zip(deltas, weights, strict=True)]
    new, _ = add_deltas(store, Change(block=ref, terms=terms, aggregate=aggregate))
    with store.open(new.digest) as file:
        data = file.read()
    assert digest_of(data) == new.digest
    return flat(load(data))


def geometric_median(points: np.ndarray) -> np.ndarray:
    """By gradient steps of a smoothed distance: another way than the engine's."""
    at, step = points.mean(0), 0.1 * np.linalg.norm(points - points.mean(0), axis=1).mean()
    for number in range(20_000):
        away = at - points
        gradient = (away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0)
        at = at - step / (1 + number) ** 0.7 * gradient / len(points)
    return at


EXPECTED = {
    "trimmed_mean": lambda points: np.sort(points, 0)[max(1, len(points) // 4) : len(points) - max(1, len(points) // 4)].mean(0),
    "median": lambda points: np.median(points, 0),
    "geometric_median": geometric_median,
}


@pytest.mark.parametrize("number", [3, 4, 5, 9])
@pytest.mark.parametrize("aggregate", EXPECTED)
def test_it_is_what_numpy_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aggregate: Aggregate, number: int) -> None:
    base, deltas = block(), [block(0.1) for _ in range(number)]
    deltas[1] = block(0.5)
    found = applied(tmp_path, aggregate, base, deltas, [0.4 / number] * number)
    expected = flat(base) + 0.4 * EXPECTED[aggregate](np.stack([flat(delta) for delta in deltas]))
    assert np.abs(found - expected).max() < (2e-3 if aggregate == "geometric_median" else 1e-6)
    monkeypatch.setattr("fedcybgd.shared.tensors.delta_file.NUMBERS", 100)
    assert (applied(tmp_path, aggregate, base, deltas, [0.4 / number] * number) == found).all(), "however many rows are read at once"


@pytest.mark.parametrize("aggregate", EXPECTED)
@pytest.mark.parametrize("size", [10.0, 1e30])
def test_one_of_five_that_is_out_of_line_hardly_moves_it(tmp_path: Path, aggregate: Aggregate, size: float) -> None:
    base, common = block(), block(0.1)
    near = [{name: t + 0.01 * DRAW.standard_normal(t.shape).astype(np.float32) for name, t in common.items()} for _ in range(4)]
    wrong = {name: np.full_like(t, size) for name, t in common.items()}
    found = applied(tmp_path, aggregate, base, [*near[:2], wrong, *near[2:]], [0.2] * 5) - flat(base)
    honest = np.mean([flat(delta) for delta in near], 0)
    assert np.linalg.norm(found - honest) < 0.5 * np.linalg.norm(honest)
    plain = applied(tmp_path, "sum", base, [*near[:2], wrong, *near[2:]], [0.2] * 5) - flat(base)
    assert np.linalg.norm(plain - honest) > 5 * np.linalg.norm(honest)


@pytest.mark.parametrize("aggregate", EXPECTED)
def test_of_deltas_that_are_all_the_same_it_is_that(tmp_path: Path, aggregate: Aggregate) -> None:
    base, delta = block(), block(0.1)
    other = {name: t.copy() for name, t in delta.items()}
    other["one"] = np.nextafter(other["one"], np.float32(9))  # another file
    found = applied(tmp_path, aggregate, base, [delta, other, delta], [0.25, 0.25, 0.5])
    assert np.abs(found - flat(base) - flat(delta)).max() < 1e-6
    zero = {name: 0 * t for name, t in delta.items()}
    assert (applied(tmp_path, aggregate, base, [zero, zero, zero], [1 / 3] * 3) == flat(base)).all()


def test_it_is_taken_where_three_agents_trained_a_block() -> None:
    assert [chosen("sum", "median", number) for number in (1, 2, 3, 9)] == ["sum", "sum", "median", "median"]
    assert chosen("sum", "mean", 9) == "sum"
