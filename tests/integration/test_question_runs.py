"""Agents with questions train a model over HTTP, to the bit as one process does; what it says to held-out ones is scored, and exported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from benchmarks import reference
from fedcybgd import Client
from fedcybgd.agent.messages import DataSource
from fedcybgd.coordinator.cli import app
from tests.integration.test_export import export
from tests.integration.test_image_runs import RealTrainer
from tests.support.browser import logged_in
from tests.support.light import LightAgent
from tests.support.live import LiveCoordinator
from tests.support.questions import easy, questions
from tests.support.visits import fresh, settled


@pytest.fixture(scope="module")
def model(live: LiveCoordinator, bert: Path) -> str:
    live.add_model("bert-of-questions", bert)
    return "bert-of-questions"


def test_a_model_learns_to_find_answers(live: LiveCoordinator, bert: Path, model: str, tmp_path: Path) -> None:
    agents, partitions = [], []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        agent = LightAgent(live, tmp_path / str(number))
        partitions.append(questions(tmp_path / f"{number}.jsonl", easy(64, number)))
        agent.tools = replace(agent.tools, trainer=RealTrainer(), data=DataSource(path=str(partitions[-1])))  # type: ignore[arg-type]
        agents.append(agent)
    held_out = questions(tmp_path / "held-out.jsonl", easy(24, 9))
    spec: dict[str, Any] = {
        "name": fresh("questions"), "model": model, "agents": [a.name for a in agents], "task": {"kind": "extractive-qa", "max_length": 24},
        "schedule": {"blocks": ["layers"], "always": ["head"], "wave": 2},
        "train": {"epochs": 5, "batch_size": 8, "learning_rate": 5e-3, "precision": "float32"},
        "evaluate": {"held_out": held_out.name, "digest": Client(live.url, live.operator_key).runs.upload_held_out(held_out)},
    }  # fmt: skip
    name = str(live.create_run(spec, start=True)["name"])
    while live.state_of(name) == "running":
        for agent in agents:
            if (assignment := agent.claim(name)) is not None:
                agent.visit(assignment)
    view = settled(live, name)
    assert view["state"] == "completed", view["reason"]
    first, last = view["evaluations"][0], view["evaluations"][-1]
    assert last["exact_match"] == last["f1"] > first["f1"] + 0.3, view["evaluations"]
    assert last["loss"] < first["loss"]
    assert (last["accuracy"], last["majority"], last["bits_per_byte"], last["rows"]) == (None, None, None, 24)

    alone = reference.begin(tmp_path / "alone", bert, spec)
    reference.run(alone, partitions, tmp_path / "scratch")
    assert {block["name"]: block["digest"] for block in view["blocks"]} == alone.digests()
    found = alone.evaluate(held_out)
    assert (found.f1, found.exact_match, found.loss) == (last["f1"], last["exact_match"], last["loss"])

    folder = export(live, name, tmp_path / "export")
    exported, info = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert said_by(exported.eval(), folder, held_out) == last["exact_match"]
    said = CliRunner().invoke(app, ["predict", str(folder), "--data", str(held_out), "--out", str(tmp_path / "said.jsonl"), "--json"])
    assert said.exit_code == 0, said.output
    summary = json.loads(said.stdout)
    assert (summary["rows"], summary["exact_match"], summary["f1"]) == (24, last["exact_match"], pytest.approx(last["f1"]))
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert sum(line["answer"] in line["expected"] for line in lines) / 24 == last["exact_match"]
    asked = questions(tmp_path / "asked.jsonl", [{name: row[name] for name in ("question", "context")} for row in easy(3, 4)])
    shown = CliRunner().invoke(app, ["predict", str(folder), "--data", str(asked)])
    assert shown.exit_code == 0, shown.output
    assert "F1" not in shown.stdout, "nothing to compare with"
    assert all(word in shown.stdout for word in ("question", "answer", "margin", "3 rows"))
    card = (folder / "README.md").read_text()
    assert "AutoModelForQuestionAnswering" in card and f"| {last['f1']:.2%} ± " in card  # noqa: PT018
    page = logged_in(live).get(f"/admin/runs/{view['id']}").text
    assert f"F1 <b>{100 * last['f1']:.2f} %</b>" in page
    assert "Held-out F1" in page


@torch.no_grad()
def said_by(model: Any, folder: Path, held_out: Path) -> float:
    """The share of these rows whose one word the model points at, as transformers alone sees it."""
    words, right = transformers.AutoTokenizer.from_pretrained(folder), 0
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    for row in rows:
        encoded = words(row["question"], row["context"], return_tensors="pt")
        context = [place for place, part in enumerate(encoded.sequence_ids(0)) if part == 1]
        found = model(input_ids=encoded["input_ids"])
        begins, ends = found.start_logits[0, context], found.end_logits[0, context]
        sums = (begins[:, None] + ends).masked_fill(torch.ones(len(context), len(context)).tril(-1).bool(), -torch.inf)
        first, last = divmod(int(sums.argmax()), len(context))
        span = encoded.token_to_chars(context[first]).start, encoded.token_to_chars(context[last]).end
        right += row["context"][slice(*span)] == row["answers"]["text"][0]
    return right / len(rows)
