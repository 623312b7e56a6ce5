"""Compressed runs with real processes: they complete, give the weights of one process to the bit, and both sides count the same bytes."""

import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from benchmarks import reference
from fedcybgd.shared.contract.digests import digest_of_file
from tests.e2e.conftest import STEPS, Federation, spec, write_rows
from tests.support.processes import wait_for


def held_out(federation: Federation, path: Path) -> dict[str, Any]:
    """An `evaluate` section whose rows are uploaded."""
    write_rows(path, 77, 16)
    digest = digest_of_file(path)
    key = {"Authorization": f"Bearer {federation.coordinator.key}"}
    url = f"{federation.coordinator.url}/v1/held-out/{digest}"
    assert httpx.put(url, params={"name": path.name}, content=path.read_bytes(), headers=key).is_success
    return {"held_out": path.name, "digest": digest, "every": "end"}


def alone(federation: Federation, bert: Path, folder: Path, values: dict[str, Any], measured_on: Path | None = None) -> reference.Reference:
    """The same run in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = reference.begin(folder / "alone", bert, values)
        if measured_on is not None:
            reference.measure_importance(run, measured_on)
        reference.run(run, federation.partitions, folder / "scratch")
    finally:
        torch.set_num_threads(threads)
    return run


def ledger(federation: Federation, run_id: str) -> dict[tuple[str, int], dict[str, int]]:
    """(agent, round) → kind → bytes, as the coordinator counted them."""
    database = sqlite3.connect(f"file:{federation.coordinator.home / 'coordinator.db'}?mode=ro", uri=True)
    query = "SELECT agent.name, round, kind, bytes FROM traffic JOIN agent ON agent.id = traffic.agent_id WHERE run_id = ?"
    found: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for name, number, kind, amount in database.execute(query, (run_id,)):
        found[name, number][kind] = amount
    database.close()
    return found


def with_nothing_cached(federation: Federation, values: dict[str, Any], seed: int) -> dict[str, Any]:
    """A run whose deltas no other run has; and the agents, which have no work, forget what they fetched."""
    for agent in federation.agents:
        for path in (agent.home / "cache").iterdir():
            path.unlink()
    return values | {"seed": seed}


def totals(federation: Federation, run_id: str) -> dict[str, list[int]]:
    """Agent → bytes down and up in all its visits, as the agents said."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for visit in federation.operator.get(f"/runs/{run_id}/assignments"):
        found[visit["agent"]][0] += visit["metrics"]["bytes_down"]
        found[visit["agent"]][1] += visit["metrics"]["bytes_up"]
    return dict(found)


def test_both_sides_count_the_same_bytes_and_as_many_as_were_planned(federation: Federation, bert: Path, tmp_path: Path) -> None:
    values = with_nothing_cached(federation, spec("bytes", agents="fixed"), 991)  # two cycles, int8 both ways: the default
    run_id = federation.start(values)
    digests = federation.digests(run_id)
    visits = federation.operator.get(f"/runs/{run_id}/assignments")
    assert len(visits) == 4
    said = {(v["agent"], v["round"]): (v["metrics"]["bytes_down"], v["metrics"]["bytes_up"]) for v in visits}

    def counted() -> dict[tuple[str, int], tuple[int, int]]:
        return {key: (sum(b for kind, b in kinds.items() if kind != "delta"), kinds.get("delta", 0))
                for key, kinds in ledger(federation, run_id).items()}  # fmt: skip

    wait_for(lambda: counted() == said, limit=10)
    same = alone(federation, bert, tmp_path, values)
    assert digests == same.digests()
    assert totals(federation, run_id) == {f"agent-{number}": [held.down, held.up] for number, held in same.holdings.items()}
    for name in ("agent-0", "agent-1"):
        first, second = (down for (agent, _), (down, _) in sorted(said.items()) if agent == name)
        assert second < first / 2
    whole = sum(b["size"] for b in federation.operator.get(f"/runs/{run_id}")["blocks"])
    assert all(up < whole / 4 for _, up in said.values())


@pytest.mark.parametrize(
    ("name", "sections", "schedule"),
    [
        ("int4", {"compression": {"policy": "int4"}, "delta": {"codec": "int4", "error_feedback": True}}, {"agents": "rotating"}),
        (
            "waves",
            {},
            {"damping": 0.5, "agents": "rotating", "first_cycle": {"wave": 2, "damping": 0.3, "steps": 7}, "order": "importance"},
        ),
    ],
)
def test_equal_to_one_process(
    federation: Federation, bert: Path, tmp_path: Path, name: str, sections: dict[str, Any], schedule: dict[str, Any]
) -> None:
    values = with_nothing_cached(federation, spec(f"emulated-{name}", **schedule), 992)
    for section, entries in sections.items():
        values[section] = entries
    rows = tmp_path / "held-out.jsonl" if "order" in schedule else None
    if rows is not None:
        values["evaluate"] = held_out(federation, rows)
    run_id = federation.start(values)
    over_http = federation.digests(run_id)
    same = alone(federation, bert, tmp_path, values, rows)
    assert over_http == same.digests()
    assert totals(federation, run_id) == {f"agent-{number}": [held.down, held.up] for number, held in same.holdings.items()}
    assert {codec for _, codec in same.encoded} == {"exact", "int8", *(["int4"] if name == "int4" else [])}


@pytest.mark.parametrize("policy", ["int8", "hybrid"])
def test_a_run_with_calibration_rows_completes(federation: Federation, tmp_path: Path, policy: str) -> None:
    values = spec(f"calibrated-{policy}", cycles=1)
    values["compression"] = {"policy": policy, "calibration_rows": 8}
    values["evaluate"] = held_out(federation, tmp_path / "held-out.jsonl")
    run_id = federation.start(values)
    federation.finished(run_id)
    view = wait_for(lambda: not (found := federation.operator.get(f"/runs/{run_id}"))["pending_jobs"] and found)
    assert [e["after_rounds"] for e in view["evaluations"]] == [2]
    assert all(
        b["version"] == (1 if b["name"].startswith("layers") else 2 if b["name"] in ("pooler", "head") else 0) for b in view["blocks"]
    )
    database = sqlite3.connect(f"file:{federation.coordinator.home / 'coordinator.db'}?mode=ro", uri=True)
    found = [json.loads(m) for (m,) in database.execute("SELECT metrics FROM fidelity WHERE run_id = ?", (run_id,))]
    database.close()
    assert found
    assert all(-1 <= m["cosine"] <= 1 for m in found)
    assert policy == "hybrid" or all(m["cosine"] > 0.95 for m in found)


def test_an_agent_is_killed_between_fetching_and_submitting(federation: Federation, undisturbed: dict[str, str]) -> None:
    run_id = federation.start(spec("killed-int8", STEPS, cycles=1))
    assignment = wait_for(lambda: federation.training(run_id))
    agent = federation.agent_of(assignment)
    agent.kill()
    cached = {f.name for f in (agent.home / "cache").iterdir()}
    agent.start()
    assert federation.digests(run_id) == undisturbed
    visits = federation.operator.get(f"/runs/{run_id}/assignments")
    assert max(v["attempt"] for v in visits) == 2
    again = next(v for v in visits if v["id"] == assignment["id"])
    assert again["metrics"]["bytes_down"] == 0, "what was fetched before is there"
    assert cached
