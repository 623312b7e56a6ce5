"""Of a table that tokens are looked up in only the rows that occur are trained, sent and applied; the model learns as if all of it were."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from fedcybgd.agent.training import optimizer
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain.admission import DeltaRefused, check_structure
from fedcybgd.coordinator.domain.jobs.payloads import AdmitPayload, ApplyPayload, Change, EncodedRef, Term
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.coordinator.engine.admit import admit
from fedcybgd.coordinator.engine.apply import apply
from fedcybgd.coordinator.engine.shards import write_blob
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.shared.contract.delta_rows import ROWS, layout_by_rows
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.words import DeltaCodec
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.safetensors_header import read_header
from fedcybgd.shared.models.families import base_prefix, canonical
from fedcybgd.shared.tensors.delta_file import DeltaFile
from fedcybgd.shared.tensors.deltas import add_decoded
from tests.support.deltas import write_delta
from tests.support.families import TEXT
from tests.support.training import Home

Tensors = dict[str, torch.Tensor]
CODECS: list[DeltaCodec] = ["float32", "bfloat16", "int8", "int4"]
TIED = {"gpt2", "opt", "opt-projected", "bloom", "llama-tied", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma4", "smollm3"}


def plain(path: Path) -> Path:
    out = path.with_suffix(".plain")
    lossless.unpack(path, out, 1 << 24)
    return out


def dense(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """A packed delta, every tensor of it whole."""
    file = DeltaFile(plain(path))
    assert file.names == shapes.keys()
    return {name: file.tensor(name, shape) for name, shape in shapes.items()}


def visit(home: Home, *opened: str, whole: bool = False, **settings: Any) -> tuple[Tensors, Tensors]:
    """What a visit to the embeddings sent, and the same with every tensor whole. With `whole` all rows are trained."""
    values = {"steps": 3, "batch_size": 3, "max_grad_norm": 0.5} | settings
    request = home.request("embeddings", *opened, **values)
    Visitor("cpu", whole_tables=whole).visit(request, lambda _: None, lambda: False)
    learned = {canonical(name, base_prefix(home.model)) for name, _ in home.model.named_parameters()}
    shapes = {n: tuple(t.shape) for block in ("embeddings", *opened) for n, t in home.blocks[block].items() if n in learned}
    return load_file(plain(Path(request.delta_path))), dense(Path(request.delta_path), shapes)


@pytest.fixture
def home(tmp_path: Path, bert: Path) -> Callable[..., Home]:
    return lambda family, **config: Home(tmp_path, bert, family, **config)


@pytest.mark.parametrize("family", TEXT)
def test_every_family_learns_the_same(home: Callable[..., Home], family: str) -> None:
    place = home(family, layers=2, vocab_size_per_layer_input=100)
    file, found = visit(place)
    _, whole = visit(place, whole=True)
    tables = [name.removesuffix(ROWS) for name in file if name.endswith(ROWS)]
    assert len(tables) == (0 if family in TIED or family == "ibert" else 1)  # whose table is of a class of its own
    for name, tensor in whole.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=2e-4), name  # three steps of 1e-2
    for name in tables:
        index = file[name + ROWS].long()
        others = torch.ones(len(found[name]), dtype=torch.bool)
        others[index] = False
        assert 0 < len(index) < len(found[name])
        assert not whole[name][others].any(), "no row was left out that would have moved"


def test_a_model_that_uses_its_table_otherwise_trains_all_of_it(home: Callable[..., Home], monkeypatch: pytest.MonkeyPatch) -> None:
    place = home("bert")
    _, whole = visit(place, whole=True)

    def uses(module: Any, ids: torch.Tensor) -> torch.Tensor:
        return ids @ module.weight

    monkeypatch.setattr("fedcybgd.agent.training.frozen.RowsEmbedding.forward", uses)
    file, found = visit(place)
    assert not any(name.endswith(ROWS) for name in file)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("limit", [0.5, None])
def test_state_and_gradients_are_of_rows_only(home: Callable[..., Home], monkeypatch: pytest.MonkeyPatch, limit: float | None) -> None:
    seen: set[tuple[int, ...]] = set()
    made = optimizer.make_optimizer

    def watched(groups: Any, *rest: Any) -> Any:
        seen.update(tuple(p.shape) for g in groups for p in g.parameters)
        return made(groups, *rest)

    monkeypatch.setattr(optimizer, "make_optimizer", watched)
    place = home("bert")
    file, _ = visit(place, max_grad_norm=limit)
    [table] = [name for name in file if name.endswith(ROWS)]
    assert (len(file[table]), 16) in seen
    assert (100, 16) not in seen


def test_decay_takes_hold_of_the_rows_that_occur_alone(home: Callable[..., Home]) -> None:
    place = home("bert")
    file, found = visit(place, weight_decay=0.1)
    _, whole = visit(place, weight_decay=0.1, whole=True)
    [table] = [name.removesuffix(ROWS) for name in file if name.endswith(ROWS)]
    index = file[table + ROWS].long()
    assert torch.allclose(found[table][index], whole[table][index], rtol=0, atol=2e-4)
    assert int(found[table].any(1).sum()) == len(index) < int(whole[table].any(1).sum())


def test_the_same_visit_gives_the_same_bytes_also_after_others(home: Callable[..., Home]) -> None:
    place = home("bert")
    request = place.request("embeddings", batch_size=2)
    visitor = Visitor("cpu")
    made = []
    for asked in (request, place.request("layers.1"), place.request("head", "embeddings"), request):
        visitor.visit(asked, lambda _: None, lambda: False)
        made.append(Path(request.delta_path).read_bytes())
    assert made[0] == made[3]


def test_frozen_again_the_table_is_whole(home: Callable[..., Home]) -> None:
    """A visit to another block after one to the embeddings meets tokens that the first did not."""
    place = home("bert")
    fresh = place.request("layers.1", steps=None, epochs=1)
    visitor = Visitor("cpu")
    visitor.visit(place.request("embeddings", steps=1, batch_size=1), lambda _: None, lambda: False)
    visitor.visit(fresh, lambda _: None, lambda: False)
    after = Path(fresh.delta_path).read_bytes()
    Visitor("cpu").visit(fresh, lambda _: None, lambda: False)
    assert Path(fresh.delta_path).read_bytes() == after


# ---- the delta ------------------------------------------------------------------------------------------------------

TABLE, SIZE, WIDTH = "word.weight", 50, 32


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BLOCK = {TABLE: normal(SIZE, WIDTH), "norm": normal(WIDTH, seed=1)}


class Place:
    """A coordinator's store with one block, and the deltas of agents."""

    def __init__(self, folder: Path) -> None:
        self.store: BlobStore = open_store(folder / "blobs")
        self.folder = folder
        digest, size = write_blob(self.store, save(BLOCK))
        self.block = ShardRef(block="embeddings", version=0, codec="exact", digest=digest, size=size)

    def delta(self, rows: list[int] | None, codec: DeltaCodec = "int8", seed: int = 3, **more: Any) -> tuple[Path, Tensors]:
        """A delta of some rows of the table (None: all), and what it means."""
        index = torch.arange(SIZE) if rows is None else torch.tensor(rows)
        moved = {TABLE: BLOCK[TABLE][index] + 1e-2 * normal(len(index), WIDTH, seed=seed), "norm": BLOCK["norm"] + 1e-2}
        path = self.folder / f"delta-{seed}"
        named = {} if rows is None else {"rows": {TABLE: index}}
        write_delta({"embeddings": moved}, {"embeddings": self.store.path(self.block.digest)}, path, codec, **named, **more)
        return path, dense(path, {n: tuple(t.shape) for n, t in BLOCK.items()})

    def put(self, path: Path) -> str:
        return write_blob(self.store, path.read_bytes())[0]

    def admit(self, digest: str) -> str | None:
        payload = AdmitPayload(assignment_id="a", delta=digest, blocks=[self.block], always=[], rules=AdmissionSection())
        return admit(self.store, payload).rejected_because

    def hostile(self, index: torch.Tensor, rows: int | None = None) -> str:
        values = {TABLE: torch.full((rows or len(index), WIDTH), 1e-3), TABLE + ROWS: index, "norm": torch.zeros(WIDTH)}
        return write_blob(self.store, save(values, {"codec": "float32"}))[0]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("codec", CODECS)
def test_rows_travel_in_every_codec_and_add_up_as_if_all_had(place: Place, codec: DeltaCodec) -> None:
    rows = [0, 7, 8, 31, SIZE - 1]
    path, meant = place.delta(rows, codec)
    file = plain(path)
    shapes = {n: tuple(t.shape) for n, t in BLOCK.items()}
    header = read_header(file)
    assert {n: (t.dtype, t.shape) for n, t in header.tensors.items()} == layout_by_rows(shapes, codec, {TABLE: len(rows)})
    check_structure(shapes, header, codec)
    others = [i for i in range(SIZE) if i not in rows]
    assert not meant[TABLE][others].any()
    assert torch.allclose(meant[TABLE][rows], 1e-2 * normal(len(rows), WIDTH, seed=3), rtol=0, atol=2e-3)
    digest = place.put(path)
    assert place.admit(digest) is None
    before = [
        EncodedRef(source=place.block.digest, codec="exact", digest=place.block.digest, size=1, packed={"digest": digest, "size": 1 << 30})
    ]
    payload = ApplyPayload(round=0, changes=[Change(block=place.block, terms=[Term(digest=digest, weight=0.5)])], before=before)
    new = load_file(place.store.path(apply(place.store, payload).blocks[0].digest))
    assert all(torch.equal(new[n], add_decoded(BLOCK[n], [(meant[n], 0.5)])) for n in BLOCK)


def test_some_rows_at_a_time_are_the_same_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path, meant = place.delta([0, 7, 8, 31, SIZE - 1])
    file = DeltaFile(plain(path))
    for step in (1, 3, 7, SIZE):
        parts = [file.tensor(TABLE, (SIZE, WIDTH), slice(i, min(i + step, SIZE))) for i in range(0, SIZE, step)]
        assert torch.equal(torch.cat(parts), meant[TABLE])


def test_trainers_of_different_rows_are_averaged_as_if_all_had_trained_all(place: Place) -> None:
    """Whoever did not meet a token did not move it: that counts in the mean, as it does where whole tables travel."""
    made = [place.delta(rows, seed=seed) for seed, rows in ((3, [1, 2, 3]), (4, [3, 4]), (5, None))]
    terms = [Term(digest=place.put(path), weight=1 / 3) for path, _ in made]
    payload = ApplyPayload(round=0, changes=[Change(block=place.block, terms=terms)])
    new = load_file(place.store.path(apply(place.store, payload).blocks[0].digest))
    for name in BLOCK:
        assert torch.equal(new[name], add_decoded(BLOCK[name], [(meant[name], 1 / 3) for _, meant in made]))


@pytest.mark.parametrize(
    ("index", "rows", "reason"),
    [
        ([-1, 2], None, "rows -1 to 2 are named of a table of 50"),
        ([2, SIZE], None, "rows 2 to 50 are named"),
        ([3, 2], None, "ascending order"),
        ([2, 2], None, "each once"),
        ([1, 2, 3], 2, "3 rows are named where"),
        ([1, 2], 3, "2 rows are named where"),
        ([], 1, "0 rows are named where"),
    ],
)
def test_rows_that_are_none_are_rejected(place: Place, index: list[int], rows: int | None, reason: str) -> None:
    found = place.admit(place.hostile(torch.tensor(index, dtype=torch.int32), rows))
    assert found is not None
    assert found.startswith(f"codec: {TABLE}: ")
    assert reason in found


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_rows_are_named_by_whole_numbers_of_one_type(place: Place, dtype: torch.dtype) -> None:
    digest = place.hostile(torch.tensor([1, 2], dtype=dtype))
    assert "must be int32" in str(place.admit(digest))
    with pytest.raises(DeltaRefused, match="must be I32"):
        check_structure({n: tuple(t.shape) for n, t in BLOCK.items()}, read_header(place.store.path(digest)), "float32")


def test_the_structure_is_looked_at_before_anything_is_kept(place: Place) -> None:
    shapes = {n: tuple(t.shape) for n, t in BLOCK.items()}

    def refused(tensors: Tensors) -> str:
        save_file(tensors, place.folder / "odd", {"codec": "float32"})
        with pytest.raises(DeltaRefused) as error:
            check_structure(shapes, read_header(place.folder / "odd"), "float32")
        return error.value.message

    two, norm = torch.tensor([1, 2], dtype=torch.int32), torch.zeros(WIDTH)
    values = torch.zeros(2, WIDTH)
    assert "comes with 0 rows" in refused({TABLE: values[:0], TABLE + ROWS: two[:0], "norm": norm})
    assert "comes with 51 rows" in refused({TABLE: torch.zeros(51, WIDTH), TABLE + ROWS: torch.arange(51, dtype=torch.int32), "norm": norm})
    assert "must be [2, 32]" in refused({TABLE: torch.zeros(3, WIDTH), TABLE + ROWS: two, "norm": norm})
    assert "must be [2, 32]" in refused({TABLE: torch.zeros(2, WIDTH + 1), TABLE + ROWS: two, "norm": norm})
    assert "must be [50, 32]" in refused({TABLE: values, "norm": norm})
    assert "foreign: norm::rows" in refused({TABLE: values, TABLE + ROWS: two, "norm": norm, "norm::rows": two.clone()})
    assert f"foreign: {TABLE}::rows" in refused({TABLE: values, TABLE + ROWS: two.reshape(2, 1), "norm": norm})


def test_what_was_left_out_is_kept_of_rows_and_added_to_the_next_rows(place: Place) -> None:
    first, left, last = [1, 5, 9], place.folder / "left", place.folder / "last"
    place.delta(first, "int4", leave=left)
    kept = load_file(left / "embeddings.safetensors")
    assert kept[TABLE].shape == (3, WIDTH)
    assert kept[TABLE + ROWS].tolist() == first
    second = [5, 20]
    path, sent = place.delta(second, "int4", 4, carried={"embeddings": left / "embeddings.safetensors"}, leave=last)
    assert load_file(plain(path))[TABLE + ROWS].tolist() == [1, 5, 9, 20], "rows that wait are sent along"
    again = load_file(last / "embeddings.safetensors")
    owed = torch.zeros(SIZE, WIDTH)
    owed[first] += kept[TABLE]
    owed[second] += BLOCK[TABLE][second] + 1e-2 * normal(2, WIDTH, seed=4) - BLOCK[TABLE][second]
    assert torch.allclose(sent[TABLE][again[TABLE + ROWS].long()] + again[TABLE], owed[[1, 5, 9, 20]], rtol=0, atol=1e-7)


def test_what_was_left_out_of_whole_tables_before_is_not_lost(place: Place) -> None:
    save_file({TABLE: torch.full((SIZE, WIDTH), 1e-3), "norm": torch.zeros(WIDTH)}, place.folder / "carried")
    _, sent = place.delta([4], "float32", carried={"embeddings": place.folder / "carried"})
    assert torch.allclose(sent[TABLE][5], torch.full((WIDTH,), 1e-3))
