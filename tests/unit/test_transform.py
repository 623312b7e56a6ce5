"""Every delta passes one place between training and encoding; what is done to it there is done to all that is sent."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedcybgd.agent.training import delta
from fedcybgd.agent.training.delta import TrainedBlock
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.shared.contract.delta_rows import ROWS
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files import lossless
from fedcybgd.shared.tensors.deltas import Encoded, decoded
from tests.support.deltas import write_delta
from tests.support.training import Home

TABLE = "embed.weight"
SHAPES = {TABLE: (40, 32), "norm.weight": (32,), "proj.weight": (24, 32)}
INDEX = torch.tensor([1, 5, 30])


class Halved:
    """Halves every difference, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[dict[str, tuple[int, ...]]] = []

    def __call__(self, differences: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.shown.append({name: tuple(t.shape) for name, t in differences.items()})
        return {name: difference / 2 for name, difference in differences.items()}


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sent(path: Path, codec: DeltaCodec) -> dict[str, Tensor]:
    plain = path.with_suffix(".opened")
    lossless.unpack(path, plain, 1 << 24)
    found = Encoded(load_file(plain))
    shapes = SHAPES | {TABLE: (len(found[TABLE + ROWS]), 32)}
    return {name: decoded(found, name, shape, codec) for name, shape in shapes.items()} | {TABLE + ROWS: found[TABLE + ROWS]}


@pytest.mark.parametrize("codec", ["float32", "int8", "int4"])
def test_half_of_every_difference_is_half_of_what_is_sent_and_of_what_is_left_out(tmp_path: Path, codec: DeltaCodec) -> None:
    base = {name: normal(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
    save_file(base, tmp_path / "shard")
    halved = Halved()
    for how, transform in (("plain", {}), ("half", {"transform": halved})):
        left: Path | None = None
        for visit in range(3):  # each with what the one before left out, and other rows of the table
            index = (INDEX + visit) % 40
            trained = {n: t + 1e-2 * normal(tuple(t.shape), 10 + visit) for n, t in (base | {TABLE: base[TABLE][index]}).items()}
            carried = {} if left is None else {"b": left / "b.safetensors"}
            left = tmp_path / f"{how}-left-{visit}"
            write_delta(
                {"b": trained}, {"b": tmp_path / "shard"}, tmp_path / f"{how}-{visit}", codec, carried, left, {TABLE: index}, **transform
            )
    assert halved.shown == [SHAPES | {TABLE: (3, 32)}] * 3, "the whole delta at once, of a table the rows that were trained"
    for visit in range(3):
        plain, half = (sent(tmp_path / f"{how}-{visit}", codec) for how in ("plain", "half"))
        lefts = [load_file(tmp_path / f"{how}-left-{visit}" / "b.safetensors") for how in ("plain", "half")]
        for name in SHAPES:
            assert torch.equal(half[name] * 2, plain[name]), (visit, name)
            assert torch.equal(lefts[1][name] * 2, lefts[0][name])
            assert plain[name].any()
        assert torch.equal(plain[TABLE + ROWS], half[TABLE + ROWS])


@pytest.mark.parametrize("name", ["w", "w.adapter_left", "w.adapter_right"])
@pytest.mark.parametrize("change", [lambda t: t[:1], lambda t: t.unsqueeze(0), lambda t: t.T, lambda _: None])
def test_a_transform_that_changes_shapes_sends_nothing(tmp_path: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> None:
    """Neither of what was trained nor of the factors of corrections; nor one that leaves something out."""
    save_file({"w": torch.ones(4, 5)}, tmp_path / "shard")
    factors = {"w.adapter_left": torch.ones(4, 2), "w.adapter_right": torch.ones(2, 5)}

    def changing(differences: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        made = {n: change(t) if n == name else t for n, t in differences.items()}
        return {n: t for n, t in made.items() if t is not None}

    block = TrainedBlock({"w": torch.zeros(4, 5)}, tmp_path / "shard")
    with pytest.raises(ValueError, match=rf"the transform of deltas made .* (for|of) {name}$"):
        delta.write_delta({"b": block}, tmp_path / "delta", "float32", None, changing, factors)
    assert not (tmp_path / "delta").exists()


def test_every_visit_goes_through_it(tmp_path: Path, bert: Path) -> None:
    place = Home(tmp_path, bert, "bert")
    asked = [place.request("embeddings", "layers.1").model_copy(update={"delta_path": str(tmp_path / name)}) for name in ("plain", "half")]
    halved = Halved()
    for request, visitor in zip(asked, (Visitor("cpu"), Visitor("cpu", transform=halved)), strict=True):
        visitor.visit(request, lambda _: None, lambda: False)
    plain, half = (load_plain(Path(request.delta_path)) for request in asked)
    assert len(halved.shown) == 1
    values = {name for name in plain if not name.endswith(ROWS)}
    assert values == set(halved.shown[0])
    assert all(torch.equal(half[name] * 2, plain[name]) for name in values)
    assert any(name.endswith(ROWS) for name in plain), "the table of tokens goes by rows"


def load_plain(path: Path) -> dict[str, Tensor]:
    plain = path.with_suffix(".opened")
    lossless.unpack(path, plain, 1 << 26)
    return load_file(plain)
