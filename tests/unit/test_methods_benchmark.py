"""What `benchmarks.methods` makes of runs: how its rate is searched, and that the rows that are reported choose nothing."""

import csv
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.method_arms import AGENTS, ARMS, TASKS, spec_of, write_rows
from benchmarks.methods import FURTHER, SEARCH_SEED, better, drawn, job, kept, report, row_of, rows_of, search, write_csv
from benchmarks.reading import Reading


def score(accuracy: float | None, loss: float = 1.0) -> dict[str, float | None]:
    return {"accuracy": accuracy, "macro_f1": accuracy, "loss": loss, "majority": None if accuracy is None else 0.5}


def result(last: float, average: float, of_reported: float = 0.5) -> dict[str, Any]:
    """Accuracies on the rows that choose; on those that are reported the other version is the better one."""
    other = of_reported + (0.1 if last > average else -0.1)
    scores = {
        "last": {"selection": score(last), "reported": score(of_reported)},
        "average": {"selection": score(average), "reported": score(other)},
    }
    costs = {
        "state": 25,
        "full_state": 100,
        "bytes": 10,
        "fedavg_bytes": 100,
        "serial": 2,
        "visits": 6,
        "tokens": 9,
        "peak_memory": 7,
        "seconds": 1.0,
    }
    return {"scores": scores, **costs}


def test_rows_that_are_reported_do_not_choose_the_version() -> None:
    assert kept(result(0.8, 0.9)) == "average"
    assert kept(result(0.9, 0.8)) == "last"
    assert kept(result(0.9, 0.9)) == "last"
    row = row_of(result(0.8, 0.9))
    assert row["accuracy"] == pytest.approx(40)
    assert row["accuracy_gain"] == pytest.approx(-10)
    assert (row["state_share"], row["bytes_share"]) == (25, 10)


def test_a_calibrated_head_is_told_beside_what_was_trained() -> None:
    found = result(0.8, 0.9)
    assert (row_of(found)["calibrated_accuracy"], row_of(found)["calibrated_loss"]) == (pytest.approx(40), 1.0), "left as it was"
    found["scores"]["last"]["calibrated"], found["scores"]["average"]["calibrated"] = score(0.9, 0.1), score(0.7, 0.2)
    row = row_of(found)
    assert (row["calibrated_accuracy"], row["calibrated_loss"]) == (pytest.approx(70), 0.2), "of the version that is kept"
    assert (row["accuracy"], row["loss"]) == (pytest.approx(40), 1.0)


def test_blocks_of_two_have_as_many_visits_and_as_much_decay() -> None:
    one, two = (spec_of("sst2", arm, 1e-3, 0, 4) for arm in ("blocks", "blocks of two"))
    assert (one["schedule"]["cycles"], two["schedule"]["cycles"], two["schedule"]["layers_per_block"]) == (4, 8, 2)
    assert two["train"]["learning_rate_decay"] ** 2 == pytest.approx(one["train"]["learning_rate_decay"])
    layers = [f"layers.{i}" for i in range(6)]
    visits = [sum(len(Reading(spec).round(blocks, AGENTS, n)) for n in range(8)) for spec, blocks in ((one, layers), (two, layers[::2]))]
    assert visits == [24, 24]


def test_language_models_are_compared_by_their_loss() -> None:
    assert better(score(None, 1.0), score(None, 2.0))
    assert better(score(0.9, 2.0), score(0.8, 1.0))


def peak_at(best: float, seen: list[float]) -> Callable[[float], Mapping[str, Any]]:
    def tried(rate: float) -> Mapping[str, Any]:
        seen.append(rate)
        return score(1 / (1 + abs(rate - best)))

    return tried


@pytest.mark.parametrize(("best", "tries"), [(1.0, 3), (2.0, 4), (4.0, 5), (0.5, 4), (1000.0, 3 + FURTHER)])
def test_a_best_rate_at_the_edge_widens_the_grid(best: float, tries: int) -> None:
    seen: list[float] = []
    found = search(1.0, peak_at(best, seen))
    assert len(seen) == len(set(seen)) == tries
    assert found == min(best, 16.0)


def test_the_seed_of_the_search_is_not_reported() -> None:
    asked: list[tuple[float, int, bool]] = []

    def result_of(rate: float, seed: int, searching: bool) -> dict[str, Any]:
        asked.append((rate, seed, searching))
        return result(0.8, 0.8)

    runs = job("sst2", "blocks", Namespace(seeds=3), result_of)
    assert [run["seed"] for run in runs] == [0, 1, 2]
    assert {seed for _, seed, searching in asked if searching} == {SEARCH_SEED}
    assert {seed for _, seed, searching in asked if not searching} == {0, 1, 2}


def test_rows_are_said_for_all_tasks_or_for_one() -> None:
    options = Namespace(rows=["1200", "mrpc=600"])
    assert [rows_of(task, options, False) for task in ("sst2", "mrpc", "shakespeare")] == [1200, 600, 0]
    assert rows_of("mrpc", options, True) == 300


@pytest.mark.parametrize("task", ["sst2", "shakespeare"])
@pytest.mark.parametrize("arm", list(ARMS))
def test_methods_train_equally_much(task: str, arm: str) -> None:
    if task not in ARMS[arm].only or arm == "base":
        return
    read = Reading(spec_of(task, arm, 1e-3, seed=0, cycles=2))
    of_blocks = [f"layers.{i}" for i in range(6)] if TASKS[task].labels else ["embeddings", *(f"layers.{i}" for i in range(5))]
    trained = {"head": ["pooler"]}.get(arm, ["adapters"] if "adapters" in arm else of_blocks)
    orders = [order for number in range(read.rounds(trained)) for order in read.round(trained, AGENTS, number)]
    visits = [order.agent for order in orders]
    assert [visits.count(agent) for agent in range(AGENTS)] == [2] * AGENTS
    assert {order.told["steps"] for order in orders} == ({None} if TASKS[task].labels else {40})


def test_held_out_rows_are_in_no_training(tmp_path: Path) -> None:
    held_out = []
    for seed in (0, 1):
        partitions, selection, reported = write_rows("banking77", Path(), tmp_path / str(seed), seed, 600)
        parts = [set(path.read_text().splitlines()) for path in (*partitions, selection, reported)]
        assert [len(path.read_text().splitlines()) for path in (*partitions, selection, reported)] == [100] * AGENTS + [600, 1200]
        assert sum(map(len, parts)) == len(set[str]().union(*parts)) == 600 + 1800
        held_out.append(parts[-2:])
    assert held_out[0] == held_out[1]


def test_a_table_a_file_and_a_picture(tmp_path: Path) -> None:
    cases = [("sst2", "blocks"), ("mrpc", "blocks"), ("sst2", "whole")]
    runs = {case: [result(0.8, 0.9) | {"seed": seed, "rate": 1e-3} for seed in range(2)] for case in cases}
    figures = report(runs)
    assert figures["mean/blocks/accuracy"] == pytest.approx(40)
    assert "mean/whole/accuracy" not in figures
    write_csv(tmp_path / "runs.csv", runs)
    with (tmp_path / "runs.csv").open() as file:
        assert [(row["method"], row["kept"]) for row in csv.DictReader(file)] == [("blocks", "average")] * 4 + [("whole", "average")] * 2
    picture = drawn(figures, cases)
    assert "blocks</text>" in picture
    assert "whole</text>" not in picture  # not in all tasks
