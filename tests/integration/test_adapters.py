"""Adapters over the wire: what is asked of agents, what they get, and what becomes of it; hands deliver the deltas."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedcybgd import Client
from fedcybgd.client.errors import Refused
from fedcybgd.coordinator import provenance
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.sweeper import tidy
from fedcybgd.coordinator.verify import verify
from fedcybgd.shared.contract.adapters import factors_of
from tests.integration.test_methods import blocks_of, drawn
from tests.integration.test_rollback import digests
from tests.support import provenance_checker
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, operator, refused, run_file, settled, shard_tensors, start_run, versions

ROWS = (6, 2)
ADAPTERS = {"matrices": ["query", "output.dense"], "rank": 4, "alpha": 2.0}
ALWAYS = {"blocks": ["adapters"], "always": ["head"], "cycles": 2}


@pytest.fixture(params=["mean", "handed"])
def combine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def trained(live: LiveCoordinator, run: str, hands: list[Hand], combine: str) -> dict[str, torch.Tensor]:
    """Deliver drawn deltas in both rounds; what the trained blocks must have become."""
    wanted = {name: t for block in ("adapters", "head") for name, t in blocks_of(live, run)[block].items()}
    draw = torch.Generator().manual_seed(0)
    for number in range(2):
        turn = list(enumerate(hands)) if combine == "mean" else [(0, hands[number])]
        taken = [(hand, hand.take(run), ROWS[i]) for i, hand in turn]
        assert all(hand.claim(run) is None for hand in hands if hand not in [h for h, *_ in taken])
        for hand, assignment, rows in taken:
            assert [list(group.blocks) for group in assignment.train.groups] == [["adapters"], ["head"]]
            codecs = {b.block: b.codec for b in assignment.manifest.blocks}
            assert codecs == {
                "embeddings": "int8",
                "layers.0": "int4",
                "layers.1": "int4",
                "pooler": "int8",
                "head": "exact",
                "adapters": "exact",
            }
            delta = {name: torch.randn(t.shape, generator=draw) * 0.05 for name, t in hand.delta(assignment).items()}
            share = rows / sum(ROWS) if combine == "mean" else 1.0
            wanted = {name: t + torch.tensor(share, dtype=torch.float32) * delta[name] for name, t in wanted.items()}
            hand.deliver(assignment, delta, rows=rows)
        settled(live, run)
    return wanted


def test_a_run_with_adapters_from_its_first_round_to_its_exports(live: LiveCoordinator, model: str, tmp_path: Path, combine: str) -> None:
    hands = [Hand(live) for _ in ROWS]
    run = start_run(
        live, model, hands, method="adapters", adapters=ADAPTERS | {"combine": combine}, compression={"policy": "int4"}, schedule=ALWAYS
    )
    before = blocks_of(live, run)
    names = [name.rpartition(".")[0] for name in before["adapters"] if name.endswith(".adapter_right")]
    assert len(names) == 6, "query, attention.output.dense and output.dense of two layers"
    assert all(not t.any() for name, t in before["adapters"].items() if name.endswith(".adapter_left"))
    wanted = trained(live, run, hands, combine)
    after = blocks_of(live, run)
    assert all(torch.equal(after[block][name], wanted[name]) for block in ("adapters", "head") for name in after[block])
    assert versions(live, run) == {"embeddings": 0, "layers.0": 0, "layers.1": 0, "pooler": 0, "head": 2, "adapters": 2}
    assert live.operator.get(f"/runs/{run}")["state"] == "completed"
    assert verify(live.settings, run).made_again == 4

    client = Client(live.url, live.operator_key)
    client.runs.export(run, tmp_path / "merged")
    client.runs.export(run, tmp_path / "peft", form="peft")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert len(merged) == sum(len(tensors) for block, tensors in after.items() if block != "adapters")
    for block in ("layers.0", "layers.1"):
        for name, tensor in after[block].items():
            part = name.removesuffix(".weight")
            if part in names and name.endswith(".weight"):
                left, right = (after["adapters"][f"{part}.adapter_{side}"] for side in ("left", "right"))
                moved = left[:, :1] * right[:1]
                for index in range(1, 4):  # in this order on every machine
                    moved = moved + left[:, index, None] * right[index]
                tensor = tensor + moved * 0.5
                assert not torch.equal(tensor, after[block][name])
            assert torch.equal(merged[f"bert.{name}"], tensor), name
    beside = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert {name.rpartition(".lora")[0].removeprefix("base_model.model.bert.") for name in beside if ".lora" in name} == set(names)
    assert {name for name in beside if ".lora" not in name} == {f"base_model.model.classifier.{leaf}" for leaf in ("weight", "bias")}
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["task_type"], said["base_model_name_or_path"]) == (4, 2.0, None, None)

    client.runs.export(run, tmp_path / "one")
    client.runs.export(run, tmp_path / "one", form="peft")
    assert {file.name for file in (tmp_path / "one").iterdir()} == {file.name for file in (tmp_path / "peft").iterdir()}

    for folder, weights in (("merged", "model"), ("peft", "adapter_model")):
        file = tmp_path / folder / "provenance.json"
        checked = provenance.check(file, export=tmp_path / folder, blobs=live.settings.blobs)
        assert (checked.export_checked, checked.made_again) == (True, 4)
        spoilt = tmp_path / folder / f"{weights}.safetensors"
        tensors = load_file(spoilt)
        name = next(n for n in tensors if "query" in n and "bias" not in n)
        save_file(tensors | {name: tensors[name] + 1e-3}, spoilt, {"format": "pt"})
        with pytest.raises(provenance.ExportUnlike):
            provenance._check_weights(
                checked.file, provenance._versions(checked.file), provenance.OverlayStore(tmp_path, [live.settings.blobs]), spoilt
            )


def test_what_an_exact_mean_folds_into_the_matrices_has_a_history_like_all_else(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path
) -> None:
    live = coordinators()
    live.add_model("bert", bert)
    hands = [Hand(live) for _ in range(3)]
    client = Client(live.url, live.operator_key)
    exact = {"combine": "exact", "matrices": ["query"], "rank": 3, "alpha": 6.0, "weights": "equal"}
    run = start_run(live, "bert", hands, method="adapters", adapters=exact, compression={"policy": "int4"}, schedule=ALWAYS | {"cycles": 3})
    seen, deltas = [digests(live, run)], []
    for number in range(2):
        for i, hand in enumerate(hands):
            assignment = hand.take(run)
            deltas.append(drawn(hand, assignment, 10 * number + i))
            hand.deliver(assignment, {name: 10 * t for name, t in deltas[-1].items()})
        settled(live, run)
        seen.append(digests(live, run))
    for one, other in pairwise(seen):
        assert {name for name, digest in other.items() if digest != one[name]} == {"layers.0", "layers.1", "head", "adapters"}
    assert verify(live.settings, run).made_again == 8
    assert hands[0].take(run).manifest.blocks[1].codec == "int4", "matrices that change are frozen all the same"

    provenance_of(live, client, run, tmp_path / "first", 8)
    for hours in (2, 4):
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(hours=hours))
    assert not live.store.has(seen[1]["layers.0"]), "of older versions the deltas are kept"
    client.runs.rollback(run, 1)
    assert digests(live, run) == seen[1]
    assert verify(live.settings, run).made_again == 8
    client.runs.without(run, hands[2].name)
    assert digests(live, run) != seen[1]
    now, base = blocks_of(live, run), {b: shard_tensors(live, seen[0][b]) for b in ("layers.0", "adapters")}
    weight = "encoder.layer.0.attention.self.query.weight"
    old = [base["adapters"][factor] for factor in factors_of(weight)]
    moved = [[10 * delta[factor] for factor in factors_of(weight)] for delta in deltas[:2]]
    mean = [factor + (one + other) / 3 for factor, one, other in zip(old, *moved, strict=True)]  # the third seat is to be trained again
    products = [(old[0] + left) @ (old[1] + right) for left, right in moved]
    added = 2 * ((sum(products) + old[0] @ old[1]) / 3 - mean[0] @ mean[1])
    assert torch.allclose(now["layers.0"][weight], base["layers.0"][weight] + added, atol=1e-6)
    assert added.abs().max() > 1e-3
    provenance_of(live, client, run, tmp_path / "second", 12)
    with pytest.raises(Refused, match="has no place for: export it merged"):
        client.runs.export(run, tmp_path / "peft", form="peft")


def provenance_of(live: LiveCoordinator, client: Client, run: str, folder: Path, made_again: int, number: int = 3) -> None:
    """Ours and a stranger's checker make every version again."""
    folder.mkdir()
    client.runs.export(run, folder / "export")
    for digest, _ in live.store.stored():
        shutil.copy(live.store.path(digest), folder / digest)
    file = folder / "export" / "provenance.json"
    assert json.loads(file.read_text())["format"] == f"fedcybgd-provenance-{number}"
    checked = provenance.check(file, export=folder / "export", blobs=folder)
    assert (checked.made_again, checked.export_checked) == (made_again, True)
    assert provenance_checker.check(file, client.connection.get("/key")["key"], folder / "export", folder) == made_again


@pytest.mark.parametrize(
    ("adapters", "says"),
    [({"rank": 33}, "adapters.rank is 33, which is above"), ({"matrices": ["qkv"]}, "adapters.matrices: 'qkv' means no linear matrix")],
)
def test_what_a_model_has_no_place_for_is_refused_by_the_plan_and_by_the_run(
    live: LiveCoordinator, model: str, hand: Hand, adapters: dict[str, Any], says: str
) -> None:
    spec = run_file(model, [hand], method="adapters", adapters=adapters, schedule={"blocks": ["adapters"]})
    run = live.create_run(spec)
    assert run["state"] == "failed"
    assert says in run["reason"]
    assert says in refused(operator(live).post("/plan", json=spec), 422, "run_refused").message


def test_a_run_without_adapters_has_none_to_export(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    run = start_run(live, model, [hand])
    with pytest.raises(Refused, match="has no adapters, for its method is block-cycle"):
        Client(live.url, live.operator_key).runs.export(run, tmp_path / "peft", form="peft")
