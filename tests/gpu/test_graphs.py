"""A visit whose passes a card repeats as CUDA graphs leaves the bits of one whose passes it does not."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from fedcybgd.agent.training import graphs
from fedcybgd.agent.training.compute import DRIVERS_OWN, limit_card
from fedcybgd.agent.training.cuda_graphs import CudaRecorder
from fedcybgd.agent.training.errors import Stopped
from fedcybgd.agent.training.visitor import Visitor
from tests.support.models import word_piece
from tests.support.recorders import RecorderContract
from tests.support.training import Home, options, same, train

STEPS = 40


class TestCudaRecorder(RecorderContract):
    device = "cuda"

    def make(self, parameters: Sequence[nn.Parameter]) -> CudaRecorder:
        return CudaRecorder()

    def test_what_waits_for_the_card_is_found_in_the_rehearsal(self) -> None:
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="synchroniz"):
            CudaRecorder().rehearse(lambda: x * x.sum().item())
        assert torch.cuda.get_sync_debug_mode() == 0
        assert not torch.cuda.is_current_stream_capturing()
        assert x.sum().item() == 3

    def test_a_recording_that_fails_leaves_the_card_and_its_memory(self) -> None:
        x = torch.ones(3, device="cuda")

        def work() -> torch.Tensor:
            large = torch.ones(64 << 20, dtype=torch.uint8, device="cuda")
            return x * large.sum().item()

        recorder = CudaRecorder()
        torch.cuda.empty_cache()
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        with pytest.raises(RuntimeError):
            recorder.record(work)
        recorder.close([])
        assert x.sum().item() == 3
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() - torch.cuda.memory_allocated() < unused + (32 << 20)
        recording = recorder.record(lambda: x * 2)
        x.fill_(4)
        recording.replay()
        assert recording.output.tolist() == [8, 8, 8]
        recorder.close([recording])


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Home]:
    """Wide enough that groups of 64 are whole, and for the attention kernels of a card."""
    word_piece(tokenizer := tmp_path_factory.mktemp("tokenizer"))
    wide = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
    return {
        "bert": Home(tmp_path_factory.mktemp("bert"), tokenizer, "bert", layers=4, **wide),
        "llama-untied": Home(tmp_path_factory.mktemp("llama"), tokenizer, "llama-untied", layers=4, num_key_value_heads=2, head_dim=32, **wide),
    }  # fmt: skip


class Seen:
    """What the passes of visits were made by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replays, self.recorded = 0, 0
        again, record = graphs.Graphs._again, CudaRecorder.record

        def counting(this: Any, graph: Any) -> Any:
            self.replays += 1
            return again(this, graph)

        def recording(this: Any, work: Any) -> Any:
            self.recorded += 1
            return record(this, work)

        monkeypatch.setattr(graphs.Graphs, "_again", counting)
        monkeypatch.setattr(CudaRecorder, "record", recording)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def on_card(setting: str = "auto", **given: str) -> Visitor:
    return Visitor("cuda", options(graphs=setting, **given))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "block", "given"),
    [
        ("bert", "layers.2", {}), ("bert", "layers.0", {"checkpointing": "on"}), ("bert", "layers.2", {"prefix_cache": "memory"}),
        ("llama-untied", "layers.2", {}), ("llama-untied", "layers.1", {"chunked_logits": "on", "checkpointing": "on"}),
        ("llama-untied", "head", {"chunked_logits": "on"}),
    ],
    ids=["bert", "bert-checkpointed", "bert-prefix", "llama", "llama-chunked", "llama-head"],
)  # fmt: skip
def test_the_same_delta_to_the_bit(
    family: str, block: str, given: dict[str, str], precision: str, homes: dict[str, Home], seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of a classifier are of several lengths: some batches are padded, and some are not."""
    wanted = homes[family].request(block, codec="int4", steps=STEPS, precision=precision)
    plain = train(wanted, on_card("off", **given))
    warm = on_card(**given)
    assert same(plain, train(wanted, warm)), caplog.text
    assert seen.recorded, caplog.text
    assert seen.replays > STEPS // 2
    assert same(plain, train(wanted, warm)), "in a process that is warm"
    assert not caplog.text


def test_a_visit_that_was_stopped_is_made_again_with_the_same_bits(homes: dict[str, Home], seen: Seen) -> None:
    wanted = homes["llama-untied"].request("layers.2", codec="int4", steps=STEPS, precision="bfloat16")
    plain, visitor = train(wanted, on_card("off")), on_card()
    steps: list[int] = []

    def stop() -> bool:
        steps.append(0)
        return len(steps) > STEPS // 2

    with pytest.raises(Stopped):
        visitor.visit(wanted, lambda _: None, stop)
    assert seen.replays
    assert same(plain, train(wanted, visitor))


def test_a_model_that_looks_at_values_is_trained_plainly(
    homes: dict[str, Home], seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """As experts do that are asked only where tokens were sent to them."""
    plain_total = graphs.Loss.total
    monkeypatch.setattr(
        graphs.Loss, "total", lambda self, batch, wanted: plain_total(self, batch, wanted) * float(batch.labels.new_ones(()).item())
    )
    wanted, visitor = homes["bert"].request("layers.2", codec="int4", steps=STEPS), on_card()
    plain = train(wanted, on_card("off"))
    with caplog.at_level(logging.WARNING):
        assert same(plain, train(wanted, visitor))
        assert same(plain, train(wanted, visitor))
    assert not seen.recorded
    assert len([r for r in caplog.records if "no CUDA graphs" in r.getMessage()]) == 1
    monkeypatch.undo()
    wanted = homes["bert"].request("layers.1", codec="int4", steps=STEPS)
    assert same(train(wanted, on_card("off")), train(wanted, visitor))


def test_a_recording_that_fails_is_trained_plainly_and_the_card_goes_on(homes: dict[str, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRecorder, "rehearse", lambda self, work: work())
    looked: list[int] = []
    plain_total = graphs.Loss.total

    def total(self: Any, batch: Any, wanted: Any) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            looked.append(1)
            batch.labels.sum().item()
        return plain_total(self, batch, wanted)

    monkeypatch.setattr(graphs.Loss, "total", total)
    wanted, visitor = homes["bert"].request("layers.2", codec="int4", steps=STEPS), on_card()
    assert same(train(wanted, on_card("off")), train(wanted, visitor))
    assert looked == [1]
    assert same(train(wanted, on_card("off")), train(wanted, visitor))


def test_a_card_that_is_too_small_for_graphs_is_trained_on_without(homes: dict[str, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = homes["bert"].request("layers.2", codec="int4", steps=STEPS)
    plain = train(wanted, on_card("off"))
    record = CudaRecorder.record

    def full(self: CudaRecorder, work: Any) -> Any:
        torch.cuda.empty_cache()
        limit_card(DRIVERS_OWN + torch.cuda.memory_reserved() + (1 << 20))
        try:
            return record(self, work)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    monkeypatch.setattr(CudaRecorder, "record", full)
    visitor = on_card()
    assert same(plain, train(wanted, visitor))
    monkeypatch.setattr(CudaRecorder, "record", record)
    assert same(plain, train(wanted, visitor))


def test_what_graphs_took_is_given_back_and_counted(homes: dict[str, Home], seen: Seen) -> None:
    wanted, visitor = homes["llama-untied"].request("layers.2", codec="int8", steps=STEPS), on_card()
    train(wanted, visitor)
    before = torch.cuda.memory_allocated()
    metrics = visitor.visit(wanted, lambda _: None, lambda: False)
    assert seen.recorded
    assert before < metrics.peak_memory_bytes < before + (320 << 20)
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
    assert torch.cuda.memory_reserved() <= torch.cuda.memory_allocated() + (64 << 20)
