"""Averages of versions: which count how often, which candidate is kept, and the mean itself, against numbers made another way."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedcybgd.coordinator.domain.averages import averaged_rounds, stood
from fedcybgd.coordinator.domain.candidates import RunCandidate, candidate_block, kept, without_improvement
from fedcybgd.coordinator.domain.history import VersionFacts, VersionOrigin, lineage
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, CandidateBlock
from fedcybgd.coordinator.domain.jobs.payloads import Change, Term
from fedcybgd.coordinator.domain.verification import KeptVersion
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.engine.candidates import average
from fedcybgd.coordinator.storage import BlobDamaged, BlobStore
from fedcybgd.shared.contract.measured import Failure, Score
from tests.unit.test_apply import delta, normal, put, store

__all__ = ["store"]
B, A, R = VersionOrigin.BASE, VersionOrigin.APPLIED, VersionOrigin.RESTORED


@pytest.mark.parametrize(
    ("part", "rounds", "expected"), [(0.5, 7, 4), (0.5, 8, 4), (0.1, 30, 3), (0.01, 3, 1), (1, 9, 9), (0.5, 1, 1), (0.3, 10, 3)]
)
def test_a_part_of_the_rounds_is_rounded_up(part: float, rounds: int, expected: int) -> None:
    assert averaged_rounds(part, rounds) == expected


def test_a_version_counts_for_the_rounds_that_ended_with_it() -> None:
    """Against a walk through the rounds, for blocks that change now and then, twice in a round, or go back."""
    draw = random.Random(0)
    for _ in range(200):
        rounds, rows, after = draw.randint(1, 9), {0: VersionFacts("x", 0, B, None, None, True)}, {}
        now = 0
        for number in range(rounds):
            for _ in range(draw.choice([0, 0, 1, 1, 2])):
                if draw.random() < 0.2:
                    rows[len(rows)] = VersionFacts("x", len(rows), R, now, None, False)
                rows[len(rows)] = VersionFacts("x", len(rows), A, len(rows) - 1, number, False)
                now = len(rows) - 1
            after[number + 1] = now
        last = draw.randint(1, rounds)
        seen = [after[number] for number in range(rounds - last + 1, rounds + 1)]
        expected = [AverageTerm(version=v, rounds=len(list(group))) for v, group in itertools.groupby(seen)]
        assert stood(lineage(rows, now), rounds, last) == expected


def score(loss: float | None, accuracy: float | None = None) -> Score:
    return Score(loss=loss, accuracy=accuracy, rows=9, seconds=0, failed=Failure(code="x", message="") if loss is None else None)


@pytest.mark.parametrize(
    ("last", "mean", "expected"),
    [
        (score(2.0), score(1.9), "average"),
        (score(1.9), score(1.9), "last"),
        (score(1.8), score(1.9), "last"),
        (score(0.5, 0.80), score(0.9, 0.81), "average"),  # where there are labels, they decide
        (score(0.9, 0.81), score(0.5, 0.81), "last"),
        (score(0.5), score(None), "last"),
        (score(None), score(0.5), "average"),
        (score(None), score(None), "last"),
        (None, None, "last"),
        (score(0.5), None, "last"),
    ],
)
def test_the_better_one_is_kept_and_of_equals_the_last_version(last: Score | None, mean: Score | None, expected: str) -> None:
    assert kept({RunCandidate.LAST: last, RunCandidate.AVERAGE: mean}) == expected
    assert kept({RunCandidate.AVERAGE: mean, RunCandidate.LAST: last}) == expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([], 0), ([2], 0), ([2, 3], 1), ([2, 2, 2], 2), ([2, 3, 1], 0), ([1, 3, None, 2], 2), ([None, None], 0), ([3, None, 2], 0)],
)
def test_patience_counts_the_scores_since_the_best(losses: list[float | None], expected: int) -> None:
    assert without_improvement([score(loss) for loss in losses]) == expected
    assert without_improvement([score(loss, None if loss is None else -loss) for loss in losses]) == expected


# ---- the mean -------------------------------------------------------------------------------------------------------


def chain(store: BlobStore, tmp_path: Path, versions: int) -> list[KeptVersion]:
    """Versions of a block, each stored and made of the one before by packed int8 deltas; the youngest first."""
    tensors = {"a.weight": normal(64, 80).to(torch.bfloat16), "b.bias": normal(64, seed=1), "positions": torch.arange(5)}
    ref = put(store, "layers.0", tensors)
    rows = [KeptVersion(VersionFacts("layers.0", 0, B, None, None, True), ref.digest, ref.size, None, True, None)]
    for version in range(1, versions):
        shapes = {name: tensor for name, tensor in tensors.items() if name == "a.weight" or (version > 1 and name == "b.bias")}
        change = Change(block=ref, terms=[Term(digest=delta(store, tmp_path, "int8", True, version, shapes)[0], weight=0.7)])
        ref, _ = add_deltas(store, change)
        rows.append(
            KeptVersion(VersionFacts("layers.0", version, A, version - 1, version - 1, False), ref.digest, ref.size, change, True, None)
        )
    return rows[::-1]


def how(line: list[KeptVersion], weights: dict[int, int]) -> CandidateBlock:
    found = candidate_block(line, [AverageTerm(version=v, rounds=r) for v, r in weights.items()], lambda row: row.facts.exact)
    assert found is not None
    return found


@pytest.mark.parametrize("weights", [{2: 3, 3: 1, 4: 7}, {0: 2, 1: 5}, {1: 1, 4: 1}, {3: 4}])
def test_the_mean_is_that_of_the_stored_versions(tmp_path: Path, store: BlobStore, weights: dict[int, int]) -> None:
    """Of versions that are made again; to the bit by numpy in float32, and as near as float32 is in float64."""
    line = chain(store, tmp_path, 5)
    versions = {row.facts.version: load_file(store.path(row.digest)) for row in line}
    made = average(store, how(line, weights))
    assert average(store, how(line, weights)) == made
    assert made.version == max(weights) + 1
    found = load_file(store.path(made.digest))
    assert torch.equal(found["positions"], versions[0]["positions"])
    for name in ("a.weight", "b.bias"):
        assert found[name].dtype == torch.float32
        values = [(versions[v][name].float().numpy(), rounds) for v, rounds in weights.items()]
        mean, total = values[0]
        for value, rounds in values[1:]:
            total += rounds
            mean = mean + (value - mean) * np.float32(rounds / total)
        assert np.array_equal(found[name].numpy(), mean)
        exact = sum(value.astype(np.float64) * rounds for value, rounds in values) / total
        assert np.abs(found[name].numpy() - exact).max() < 1e-6
    if len(weights) == 1:
        assert made.digest == next(row.digest for row in line if row.facts.version in weights)


def test_a_mean_begins_at_the_nearest_bytes_that_are_kept(tmp_path: Path, store: BlobStore) -> None:
    line = chain(store, tmp_path, 5)
    terms = [AverageTerm(version=3, rounds=1), AverageTerm(version=4, rounds=2)]
    from_the_first = how(line, {3: 1, 4: 2})
    nearer = candidate_block(line, terms, lambda row: row.facts.version in (0, 2))
    assert nearer is not None
    assert (len(from_the_first.changes), len(nearer.changes), nearer.rounds) == (4, 2, [0, 1, 2])
    assert average(store, nearer) == average(store, from_the_first)
    assert candidate_block(line, terms, lambda row: row.facts.version == 4) is None
    store.delete(line[-1].digest)
    assert average(store, nearer).version == 5


def test_a_mean_of_other_versions_than_the_history_names_is_none(tmp_path: Path, store: BlobStore) -> None:
    block = how(chain(store, tmp_path, 4), {2: 1, 3: 1})
    other = block.changes[1].model_copy(update={"terms": [block.changes[1].terms[0].model_copy(update={"weight": 0.71})]})
    before = set(store.stored())
    with pytest.raises(BlobDamaged, match=r"layers.0, version 3: its deltas make something else"):
        average(store, block.model_copy(update={"changes": [block.changes[0], other, block.changes[2]]}))
    assert set(store.stored()) == before
