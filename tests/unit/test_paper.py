"""What the programs behind docs/paper.md compute: from real, tiny runs, and from figures that are given."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.paper import compression, interference, question_answering, ratios, wall_clock
from benchmarks.paper.federation import ALL, Place, plays_spec
from benchmarks.paper.landscape import Judge, Landscape, cosine


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, None, tiny=True)


def test_a_landscape_has_the_scores_of_the_models_that_it_is_made_of(place: Place) -> None:
    federation = place.plays(0)
    schedule = {"blocks": ["layers.1-2"], "always": [], "wave": 2}
    run = federation.begin(place.scratch(), plays_spec(0, 2, schedule=schedule))
    begun = replace(run)
    before = run.evaluate(federation.held_out).loss
    federation.go_on(run, place.folder / "visits")
    after = run.evaluate(federation.held_out).loss
    assert federation.loss(run) == pytest.approx(after, abs=1e-5)
    landscape = Landscape(Judge(run, federation.held_out, ALL), run, begun.blocks, run.blocks)
    assert landscape.moved == ["layers.1", "layers.2"]
    assert landscape.loss(()) == pytest.approx(before, abs=1e-5)
    assert landscape.loss(landscape.moved) == pytest.approx(after, abs=1e-5)
    assert landscape.loss(landscape.moved, 0.0) == landscape.loss(())
    assert landscape.loss(["layers.1"]) not in (pytest.approx(before, abs=1e-5), pytest.approx(after, abs=1e-5))
    here, there = landscape.gradients(()), landscape.gradients(["layers.1"])
    assert cosine(here["layers.2"], here["layers.2"]) == pytest.approx(1)
    assert cosine(here["layers.2"], there["layers.2"]) < 1 - 1e-6


def test_ratios_of_equal_gains_are_one_and_theirs_are_of_their_logs(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"begun": 4.0, "gain 1": 0.5, "gain 2": 0.5, "gain 3": 0.5, "visits": 1.0, "steps": 1.0}
    figures = ratios.report({arm: [dict(run), dict(run)] for arm in ratios.ARMS})
    assert [name for name in ratios.RATIOS if figures[f"ratio/{name}"] != 1] == []
    assert figures["ratio/first cycle, of the gain of three, theirs"] == pytest.approx((1.105 - 0.9223) / (1.105 - 0.9066))
    assert figures["ratio/block cycle, of central at equal passes (cycle 1), theirs"] == pytest.approx(0.1827 / 0.1777)
    assert "seed by seed" in capsys.readouterr().out


def test_what_compression_costs_is_told_seed_by_seed() -> None:
    plain = [{"begun": 4.0, "loss": 3.0, "MB up": 1.0}, {"begun": 4.0, "loss": 3.5, "MB up": 1.0}]
    coded = [{"begun": 4.0, "loss": 3.1, "MB up": 1.0}, {"begun": 4.0, "loss": 3.6, "MB up": 1.0}]
    figures = compression.report({compression.NOTHING: plain, "int4 / int4": coded})
    assert figures["int4 / int4/cost"] == pytest.approx(0.1)
    assert figures["int4 / int4/cost_sd"] == pytest.approx(0)  # the seeds differ, and their differences do not
    assert figures["int4 / int4/gain lost %"] == pytest.approx((10 + 20) / 2)


def test_a_codec_pays_below_the_bandwidth_at_which_its_time_is_what_its_bytes_save() -> None:
    part = dict.fromkeys(wall_clock.PARTS, 0.1)
    plain = part | {"MB down": 10.0, "MB up": 2.0}
    dearer = part | {"coordinator": 0.9, "MB down": 1.0, "MB up": 1.0}
    cheaper = dearer | {"coordinator": 0.05}
    figures = wall_clock.report({wall_clock.NOTHING: [plain], "int8 / int8": [dearer], "int4 / int4": [cheaper]})
    pays = figures["int8 / int8/pays below Mbit/s"]
    assert pays == pytest.approx(8 * 10 / 0.8)
    assert dearer["compute"] + 8 * 2 / pays == pytest.approx(plain["compute"] + 8 * 12 / pays)
    assert math.isinf(figures["int4 / int4/pays below Mbit/s"])
    assert figures["int4 / int4/at 100"] == pytest.approx(0.1 * (3 + 20) + 0.05 + 8 * 2 / 100)


def test_interference_is_measured_in_a_model_that_was_made_here(place: Place) -> None:
    found = interference.measure("gpt2", 0, place)
    assert all(math.isfinite(value) for value in found.values())
    assert {"lost adjacent %", "lost distant %", "cosine adjacent", "kept of all %", "best damping of all"} <= set(found)
    assert found["best damping of all"] in interference.DAMPINGS
    assert found["kept of all at best %"] >= found["kept of all %"] or found["gain of one"] < 0


def test_no_article_is_with_two_agents_or_held_out_too(tmp_path: Path) -> None:
    rows = [{"title": f"t{i % 30}", "question": f"{i % 30}", "context": "c", "answers": []} for i in range(300)]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    held = []
    for seed, search in ((0, False), (1, False), (1, True)):
        agents, held_out = question_answering.split(path, seed, 55, search)
        articles = [{row["question"] for row in part} for part in (*agents, held_out)]
        assert len(set().union(*articles)) == sum(map(len, articles)) == (24 if search else 30), (seed, search)
        assert {len(part) for part in agents} <= {30, 40}
        held.append(articles[-1])
    assert held[0] == held[1], "the same rows for every seed"
    assert not held[0] & held[2], "held-out rows choose no rate"
