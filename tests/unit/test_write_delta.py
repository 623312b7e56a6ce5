"""The delta file that a visit leaves: packed, in the codec asked for, and with what the codec left out beside it."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedcybgd.shared.contract.delta_layout import expected_layout
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.tensors.deltas import decoded
from fedcybgd.shared.tensors.quantized import CodecError
from tests.support.deltas import write_delta

CODECS: list[DeltaCodec] = ["float32", "bfloat16", "int8", "int4"]
Tensors = dict[str, torch.Tensor]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LAYER = {"w": normal(24, 64), "odd": normal(8, 33, seed=1), "b": normal(24, seed=2)}
HEAD = {"head.w": normal(2, 24, seed=3)}
SHAPES = {n: tuple(t.shape) for n, t in (LAYER | HEAD).items()}


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, Path]:
    save_file(LAYER | {"buffer": torch.arange(3)}, tmp_path / "layer")
    save_file({n: t.bfloat16() for n, t in HEAD.items()}, tmp_path / "head")
    return {"layers.0": tmp_path / "layer", "head": tmp_path / "head"}


def moved(shards: dict[str, Path], scale: float = 1e-3, seed: int = 9) -> dict[str, Tensors]:
    """The blocks after a training that moved every value a little."""
    return {
        block: {n: t.float() + scale * normal(*t.shape, seed=seed) for n, t in load_file(path).items() if n != "buffer"}
        for block, path in shards.items()
    }


def opened(path: Path, codec: str) -> Tensors:
    """The decoded delta, by name."""
    plain = path.with_suffix(".opened")
    lossless.unpack(path, plain, 1 << 20)
    header = read_header(plain)
    assert header.metadata["codec"] == codec
    assert {n: (t.dtype, t.shape) for n, t in header.tensors.items()} == expected_layout(SHAPES, codec)
    with safe_open(plain, "pt") as file:
        return {name: decoded(file, name, shape, codec) for name, shape in SHAPES.items()}


def true_difference(trained: dict[str, Tensors], shards: dict[str, Path]) -> Tensors:
    return {n: t - load_file(shards[block])[n].float() for block, tensors in trained.items() for n, t in tensors.items()}


def norm(tensors: Tensors) -> float:
    return float(torch.cat([t.flatten() for t in tensors.values()]).double().norm())


@pytest.mark.parametrize(("codec", "bound"), list(zip(CODECS, [0.0, 0.003, 0.01, 0.1], strict=True)))
def test_what_was_left_out_is_measured(tmp_path: Path, shards: dict[str, Path], codec: DeltaCodec, bound: float) -> None:
    trained = moved(shards)
    said = write_delta(trained, shards, tmp_path / "delta", codec)
    real, sent = true_difference(trained, shards), opened(tmp_path / "delta", codec)
    assert said == pytest.approx(norm({n: real[n] - sent[n] for n in real}) / norm(real), rel=1e-3)
    assert said <= bound
    assert (said == 0) is (codec == "float32")


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_training_gives_the_same_bytes(tmp_path: Path, shards: dict[str, Path], codec: DeltaCodec) -> None:
    for name in ("one", "other"):
        write_delta(moved(shards), shards, tmp_path / name, codec, leave=tmp_path / f"{name}.left")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    for block in shards:
        one, other = (tmp_path / f"{name}.left" / f"{block}.safetensors" for name in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


def test_nothing_changed_leaves_nothing_out(tmp_path: Path, shards: dict[str, Path]) -> None:
    assert write_delta(moved(shards, 0.0), shards, tmp_path / "delta", "int8") == 0.0
    assert all(not t.any() for t in opened(tmp_path / "delta", "int8").values())


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_sent_and_left_out_add_up_to_what_was_trained_and_carried(tmp_path: Path, shards: dict[str, Path], codec: DeltaCodec) -> None:
    trained = moved(shards)
    save_file({n: 1e-4 * normal(*t.shape, seed=4) for n, t in LAYER.items()}, tmp_path / "carried")
    write_delta(trained, shards, tmp_path / "delta", codec, {"layers.0": tmp_path / "carried"}, tmp_path / "left")
    real, sent, carried = true_difference(trained, shards), opened(tmp_path / "delta", codec), load_file(tmp_path / "carried")
    for block, names in (("layers.0", LAYER), ("head", HEAD)):
        left = load_file(tmp_path / "left" / f"{block}.safetensors")
        assert left.keys() == names.keys()
        for name in names:
            assert left[name].dtype == torch.float32
            owed = real[name] + carried.get(name, torch.zeros(()))
            assert torch.allclose(sent[name] + left[name], owed, rtol=0, atol=1e-9)
    assert norm(load_file(tmp_path / "left" / "layers.0.safetensors")) > 0


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_with_feedback_the_sums_of_many_visits_are_closer(tmp_path: Path, shards: dict[str, Path], codec: DeltaCodec) -> None:
    visits = 6
    errors = {}
    for feedback in (True, False):
        total: Tensors = {n: torch.zeros(s) for n, s in SHAPES.items()}
        wanted: Tensors = {n: torch.zeros(s) for n, s in SHAPES.items()}
        left = tmp_path / f"left-{feedback}"
        for visit in range(visits):
            trained = moved(shards, seed=100 + visit)
            carried = {b: path for b in shards if feedback and (path := left / f"{b}.safetensors").exists()}
            write_delta(trained, shards, tmp_path / "delta", codec, carried, left)
            sent = opened(tmp_path / "delta", codec)
            real = true_difference(trained, shards)
            total = {n: total[n] + sent[n] for n in total}
            wanted = {n: wanted[n] + real[n] for n in wanted}
        errors[feedback] = norm({n: total[n] - wanted[n] for n in total}) / norm(wanted)
    # With feedback the error is that of the last visit alone; without, it grows with the square root of their number.
    assert errors[True] < 0.6 * errors[False]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_not_finite_is_not_sent(tmp_path: Path, shards: dict[str, Path], codec: DeltaCodec, value: float) -> None:
    trained = moved(shards)
    trained["layers.0"]["b"][3] = value
    with pytest.raises(CodecError, match="b: "):
        write_delta(trained, shards, tmp_path / "delta", codec)
    assert not (tmp_path / "delta").exists()


def test_a_delta_is_whole_or_not_there(tmp_path: Path, shards: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "delta"
    with monkeypatch.context() as patched:
        patched.setattr(lossless, "pack", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_delta(moved(shards), shards, target, "int8")
    assert not target.exists()
    write_delta(moved(shards), shards, target, "int8")
    assert not list(tmp_path.glob("delta.p*")), "nothing is left beside it"
    assert target.stat().st_size > 0
