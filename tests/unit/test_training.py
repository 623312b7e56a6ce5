"""A visit trains the open blocks and nothing else, repeats itself to the bit, and leaves no delta when it fails."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedcybgd.agent.messages import DataSource, LocalShard, TrainRequest
from fedcybgd.agent.training.compute import Compute, choose_device, choose_precision
from fedcybgd.agent.training.data import Partition
from fedcybgd.agent.training.emulator import Emulator
from fedcybgd.agent.training.errors import NonFinite, Stopped
from fedcybgd.agent.training.loss import Loss
from fedcybgd.agent.training.memory import PeakMemory
from fedcybgd.agent.training.optimizer import OptimizerGroup
from fedcybgd.agent.training.order import num_steps
from fedcybgd.agent.training.train import train
from fedcybgd.agent.training.visit import Visit
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.training import ParameterGroup, TrainSettings
from fedcybgd.shared.models.assembly import AssemblyError
from fedcybgd.shared.models.blocks import own_tensors, partition
from fedcybgd.shared.models.families import canonical
from tests.support.models import WORDS
from tests.support.training import read_delta


@pytest.fixture(scope="module")
def shards(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A three-way classifier on the tiny BERT, cut into its blocks; `config.json` is beside them."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("shards")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    tensors = {canonical(name, "bert"): tensor.detach().clone() for name, tensor in own_tensors(model).items()}
    for block in partition(model):
        save_file({t.name: tensors[t.name] for t in block.tensors}, folder / f"{block.name}.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    return {block.name: folder / f"{block.name}.safetensors" for block in partition(model)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [{"text": " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(2 + i % 5)), "label": i % 3} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


Ask = Callable[..., TrainRequest]


@pytest.fixture
def ask(bert: Path, shards: dict[str, Path], rows: Path, tmp_path: Path) -> Ask:
    """Makes the request of a visit: `ask(opened blocks, seed=…)`; `replaced` exchanges shards."""

    def make(
        *opened: str, replaced: dict[str, Path] | None = None, delta: str = "delta", data: Path = rows, **settings: Any
    ) -> TrainRequest:
        paths = shards | (replaced or {})
        files = {p.name: str(p) for p in bert.iterdir() if p.name.startswith(("tokenizer", "special"))}
        values = {"steps": 4, "batch_size": 4, "max_length": 16, "seed": 7, "precision": "float32", "num_labels": 3, "warmup_steps": 1}
        groups = [ParameterGroup(blocks=[block], learning_rate=1e-2) for block in opened]
        return TrainRequest(
            assignment_id="asg", files=files | {"config.json": str(shards["head"].parent / "config.json")}, model_key="run",
            shards=[LocalShard(block=b, digest=digest_of_file(p), codec="exact", path=str(p), size=p.stat().st_size) for b, p in paths.items()],
            train=TrainSettings(task="text-classification", groups=groups, **values | settings),
            data=DataSource(path=str(data)), delta_path=str(tmp_path / f"{delta}.safetensors"),
        )  # fmt: skip

    return make


def visit(visitor: Visitor, request: TrainRequest, should_stop: Callable[[], bool] = lambda: False) -> dict[str, torch.Tensor]:
    """Do a visit and return its delta."""
    visitor.visit(request, lambda _: None, should_stop)
    return read_delta(Path(request.delta_path))


def model_of(visitor: Visitor) -> Any:
    assert visitor._emulator is not None
    return visitor._emulator[1].model


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {canonical(name, "bert"): tensor.detach().clone() for name, tensor in own_tensors(model).items()}


def base(shards: dict[str, Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for path in shards.values() for name, tensor in load_file(path).items()}


def open_emulator(request: TrainRequest, block: str) -> tuple[Emulator, dict[str, nn.Parameter]]:
    """An emulator with one open block, and the parameters of that block."""
    emulator = Emulator(Path(request.files["config.json"]), "text-classification", "cpu", torch.float32, "eager")
    emulator.update(request.shards, [block])
    return emulator, emulator.open(next(Path(s.path) for s in request.shards if s.block == block))


@pytest.mark.parametrize(
    "opened", [["layers.0"], ["layers.1"], ["head"], ["embeddings"], ["layers.1", "head"], ["layers.0", "pooler", "head"]]
)
def test_only_the_open_blocks_change_and_the_delta_is_the_difference(ask: Ask, shards: dict[str, Path], opened: list[str]) -> None:
    visitor = Visitor("cpu")
    trainable: list[set[str]] = []

    def look() -> bool:
        trainable.append({canonical(n, "bert") for n, p in model_of(visitor).named_parameters() if p.requires_grad})
        return False

    delta = visit(visitor, ask(*opened), look)
    before, after = base(shards), values_of(model_of(visitor))
    table = {"embeddings.word_embeddings.weight"} if "embeddings" in opened else set()  # see test_embedding_rows.py
    assert {name.removesuffix("::rows") for name in delta if name.endswith("::rows")} == table
    before, after, delta = ({n: t for n, t in some.items() if n.removesuffix("::rows") not in table} for some in (before, after, delta))
    inside = {name for block in opened for name in load_file(shards[block])} - table
    assert {name for name in after if not torch.equal(after[name], before[name])} == {n for n in inside if delta[n].any()}
    assert set(delta) == inside
    for name in inside:
        assert delta[name].dtype == torch.float32
        assert torch.equal(delta[name], after[name] - before[name])
    assert all(any(delta[name].any() for name in load_file(shards[block]) if name not in table) for block in opened)
    assert trainable == [inside] * 4, "in each of four steps"
    assert not any(p.requires_grad or p.grad is not None for p in model_of(visitor).parameters()), "nothing is kept between visits"


@pytest.mark.parametrize(("opened", "below"), [("layers.1", "encoder.layer.0"), ("layers.0", "embeddings"), ("head", "pooler")])
def test_nothing_below_the_open_block_is_kept_for_backward(ask: Ask, opened: str, below: str) -> None:
    model: Any = open_emulator(ask(opened), opened)[0].model
    saved: list[torch.Tensor] = []
    kept_below: list[int] = []

    def at_the_border(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        assert hidden.grad_fn is None
        assert not hidden.requires_grad
        kept_below.append(len(saved))

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    handle = model.bert.get_submodule(below).register_forward_hook(at_the_border)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(input_ids=torch.tensor([[2, 5, 6, 3]]), attention_mask=torch.ones(1, 4, dtype=torch.int64)).logits.sum().backward()
    handle.remove()
    assert kept_below == [0]
    assert saved, "what is above is kept"


def test_the_same_seed_gives_the_same_delta_to_the_bit_warm_or_fresh(ask: Ask) -> None:
    first = Visitor("cpu")
    one = Path(ask("layers.0", "head").delta_path)
    visit(first, ask("layers.0", "head"))
    digest = digest_of_file(one)
    visit(first, ask("layers.1", delta="between"))  # leaves other blocks trained and open
    visit(first, ask("layers.0", "head", delta="warm"))
    visit(Visitor("cpu"), ask("layers.0", "head", delta="fresh"))
    assert digest_of_file(one.with_stem("warm")) == digest
    assert digest_of_file(one.with_stem("fresh")) == digest
    visit(first, ask("layers.0", "head", delta="other", seed=8))
    assert digest_of_file(one.with_stem("other")) != digest


def test_a_new_version_of_a_frozen_block_is_used(ask: Ask, shards: dict[str, Path], tmp_path: Path) -> None:
    changed = tmp_path / "new-layer.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(shards["layers.0"]).items()}, changed)
    visitor = Visitor("cpu")
    old = visit(visitor, ask("layers.1"))
    new = visit(visitor, ask("layers.1", replaced={"layers.0": changed}))
    fresh = visit(Visitor("cpu"), ask("layers.1", replaced={"layers.0": changed}, delta="fresh"))
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert all(torch.equal(fresh[name], new[name]) for name in new)


def test_a_delta_is_float32_over_a_block_that_came_in_bfloat16(ask: Ask, shards: dict[str, Path], tmp_path: Path) -> None:
    half = tmp_path / "half.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(shards["layers.0"]).items()}, half)
    visitor = Visitor("cpu")
    delta = visit(visitor, ask("layers.0", replaced={"layers.0": half}))
    after = values_of(model_of(visitor))
    for name, tensor in load_file(half).items():
        assert delta[name].dtype == after[name].dtype == torch.float32
        assert torch.equal(delta[name], after[name] - tensor.float())


def test_in_bfloat16_only_frozen_matrices_lose_precision(ask: Ask, shards: dict[str, Path]) -> None:
    visitor = Visitor("cpu")
    delta = visit(visitor, ask("layers.1", precision="bfloat16"))
    model = model_of(visitor)
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert model.bert.encoder.layer[1].output.dense.weight.dtype == torch.float32
    assert model.bert.embeddings.word_embeddings.weight.dtype == torch.float32
    assert model.bert.encoder.layer[0].output.LayerNorm.weight.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in delta.values())
    # A block that was frozen in bfloat16 is exact again once it is trained.
    visit(visitor, ask("layers.0", precision="bfloat16", delta="next", steps=1, max_grad_norm=1e-9))
    moved = read_delta(Path(ask("layers.0", delta="next").delta_path))
    before, after = load_file(shards["layers.0"]), values_of(model_of(visitor))
    assert all(torch.equal(after[name] - before[name], moved[name]) for name in before)


def test_training_lowers_the_loss_and_reports_it(ask: Ask) -> None:
    told: list[Progress] = []
    request = ask("layers.0", "layers.1", "head", steps=60)
    metrics = Visitor("cpu").visit(request, told.append, lambda: False)
    assert metrics.loss_last < 0.8 * metrics.loss_first
    assert (metrics.steps, metrics.rows) == (60, 240)
    assert metrics.tokens > metrics.rows
    assert metrics.started_at is not None
    assert told[0].phase == "loading"
    steps = [p for p in told if p.phase == "training"]
    assert (steps[0].step, steps[0].loss, steps[1].step, steps[-1].step, steps[-1].steps) == (0, None, 1, 60, 60)
    assert all(p.loss is not None and p.tokens_per_s and p.peak_memory_bytes is not None for p in steps[1:])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_first_step(ask: Ask, shards: dict[str, Path], tmp_path: Path, value: float) -> None:
    spoilt = tmp_path / "spoilt.safetensors"
    tensors = load_file(shards["head"])
    tensors["classifier.bias"][0] = value
    save_file(tensors, spoilt)
    visitor = Visitor("cpu")
    request = ask("layers.1", replaced={"head": spoilt})
    with pytest.raises(NonFinite, match=r"the loss is .* at step 1 of 4"):
        visit(visitor, request)
    assert not Path(request.delta_path).exists()
    after = values_of(model_of(visitor))
    assert all(torch.equal(after[name], tensor) for name, tensor in load_file(shards["layers.1"]).items())
    # And the visitor is as good as new for the next visit.
    assert all(
        torch.equal(a, b)
        for a, b in zip(visit(visitor, ask("layers.1")).values(), visit(Visitor("cpu"), ask("layers.1")).values(), strict=True)
    )


@pytest.fixture
def loop(bert: Path, ask: Ask) -> Callable[..., Any]:
    """The training loop itself on an emulator with `layers.1` open."""
    request = ask("layers.1")
    emulator, opened = open_emulator(request, "layers.1")
    partition = Partition(request.data, bert, request.train)

    def run(should_stop: Callable[[], bool] = lambda: False, **settings: Any) -> Any:
        changed = request.train.model_copy(update=settings)
        groups = [OptimizerGroup(list(opened.values()), 1e-2)]
        asked, compute = request.model_copy(update={"train": changed}), Compute("cpu", torch.float32)
        this = Visit(asked, emulator, partition, compute, PeakMemory("cpu", 0), lambda _: None, should_stop)
        return train(this, groups, Loss(emulator.model, changed.task, torch.float32))

    run.parameters = opened  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 3])
def test_a_gradient_that_is_not_finite_stops_before_its_step(loop: Any, value: float, at: int) -> None:
    parameters: dict[str, nn.Parameter] = loop.parameters
    snapshots: list[dict[str, torch.Tensor]] = []
    spoilt = parameters["encoder.layer.1.output.dense.bias"]

    def before_each_step() -> bool:
        snapshots.append({name: p.detach().clone() for name, p in parameters.items()})
        return False

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient.index_fill(0, torch.tensor([3]), value) if len(snapshots) == at else gradient

    handle = spoilt.register_hook(spoil)
    with pytest.raises(NonFinite, match=f"the gradient's norm is .* at step {at} of 4"):
        loop(before_each_step)
    handle.remove()
    assert len(snapshots) == at
    for name, parameter in parameters.items():
        assert torch.equal(parameter, snapshots[-1][name])
        assert bool(torch.isfinite(parameter).all())
    assert (at == 1) is all(torch.equal(snapshots[0][name], snapshots[-1][name]) for name in parameters)


def test_a_stop_comes_before_the_next_step(loop: Any) -> None:
    asked: list[int] = []

    def after_two() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Stopped):
        loop(after_two, steps=100)
    assert len(asked) == 3


def test_a_stopped_visit_leaves_no_delta(ask: Ask) -> None:
    request = ask("layers.0")
    with pytest.raises(Stopped):
        visit(Visitor("cpu"), request, lambda: True)
    assert not Path(request.delta_path).exists()


def test_the_learning_rate_rises_over_the_first_steps(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.AdamW, *args: Any, **more: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    loop(steps=6, warmup_steps=3)
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_gradients_are_clipped_to_their_norm(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.AdamW, *args: Any, **more: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    loop(steps=2, max_grad_norm=0.001)
    assert max(norms) <= 0.0011
    norms.clear()
    loop(steps=2, max_grad_norm=None)
    assert max(norms) > 0.002, "each step is of one parameter now"


def test_each_group_has_its_own_learning_rate(ask: Ask) -> None:
    request = ask("layers.1", "head", steps=1, warmup_steps=0)
    request.train.groups[1].learning_rate = 1e-4
    delta = visit(Visitor("cpu"), request)
    # The first step of Adam moves every weight by its learning rate.
    assert delta["classifier.bias"].abs().max().item() == pytest.approx(1e-4, rel=1e-2)
    assert delta["encoder.layer.1.output.dense.bias"].abs().max().item() == pytest.approx(1e-2, rel=1e-2)


@pytest.mark.parametrize(
    ("steps", "epochs", "features", "wanted"),
    [(7, 1, 100, 7), (None, 1, 100, 25), (None, 2, 10, 6), (None, 0.5, 10, 2), (None, 0.01, 3, 1)],
)
def test_epochs_become_steps(ask: Ask, steps: int | None, epochs: float, features: int, wanted: int) -> None:
    settings = ask("head", steps=steps, epochs=epochs).train
    assert num_steps(settings, features) == wanted


def test_an_epoch_sees_every_row_once_in_an_order_of_the_seed(bert: Path, rows: Path, ask: Ask) -> None:
    partition = Partition(DataSource(path=str(rows)), bert, ask("head").train)

    def order(seed: int) -> list[list[int]]:
        return partition.order(4, torch.Generator().manual_seed(seed))

    assert sorted(i for batch in order(1) for i in batch) == list(range(24))
    assert [len(batch) for batch in order(1)] == [4] * 6
    assert order(1) == order(1)
    assert order(1) != order(2)


def test_changed_rows_are_read_again(ask: Ask, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "my card", "label": 0}\n')
    visitor = Visitor("cpu")
    first = visit(visitor, ask("head", data=data))
    data.write_text('{"text": "my card", "label": 2}\n' * 2)
    second = visit(visitor, ask("head", data=data))
    assert not torch.equal(first["classifier.bias"], second["classifier.bias"])


def test_data_that_do_not_fit_are_an_error_and_no_delta(ask: Ask, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "my card", "label": 3}\n')
    request = ask("head", data=data)
    with pytest.raises(DataError, match="label 3 is outside 0…2"):
        visit(Visitor("cpu"), request)
    assert not Path(request.delta_path).exists()


def test_a_manifest_that_is_not_the_whole_model_is_refused(ask: Ask) -> None:
    request = ask("head")
    request.shards = [s for s in request.shards if s.block != "layers.0"]
    with pytest.raises(AssemblyError, match=r"no shard holds encoder\.layer\.0\."):
        visit(Visitor("cpu"), request)


def test_precision_and_device_are_chosen_by_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("float32", "cpu") == torch.float32
    assert choose_precision("bfloat16", "cpu") == torch.bfloat16
    for features, wanted in [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert choose_precision("auto", "cpu") == wanted
    assert choose_precision("auto", "mps") == torch.float32
    assert choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
