"""Passes are recorded where that pays, and nothing that is learned depends on whether they are."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import masking_utils

from fedcybgd.agent.training import graphs, visitor
from fedcybgd.agent.training.graphs import Graphs
from fedcybgd.agent.training.mask_answers import MaskAnswers, Unforeseen
from fedcybgd.agent.training.visitor import Visitor
from tests.support.models import word_piece
from tests.support.recorders import RecorderContract, Repeater, Repetition
from tests.support.training import Home, options, same, train

STEPS = 30
"""of two shapes of batch: the short rows, and the long ones"""


class TestRepeater(RecorderContract):
    device = "cpu"

    def make(self, parameters: Sequence[nn.Parameter]) -> Repeater:
        return Repeater(parameters)


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Home]:
    word_piece(tokenizer := tmp_path_factory.mktemp("tokenizer"))
    return {family: Home(tmp_path_factory.mktemp(family), tokenizer, family) for family in ("bert", "llama-untied")}


class Recorded:
    """Has visits on a CPU recorded, by `make` of their parameters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make: Callable[[Sequence[nn.Parameter]], Repeater] = Repeater
        self.recorders: list[Any] = []
        monkeypatch.setattr(visitor, "graphs_of", self._graphs_of)

    def _graphs_of(self, visit: Any, setting: str, parameters: Sequence[nn.Parameter], loss_of: Any, prefix: Any) -> Graphs | None:
        if setting == "off" or visit.settings.trained in visit.emulator.without_graphs:
            return None
        self.recorders.append(self.make(parameters))
        return Graphs(visit, parameters, loss_of, prefix, self.recorders[-1])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


@pytest.mark.parametrize(
    ("family", "more", "given"),
    [
        ("bert", {}, {}), ("bert", {"precision": "bfloat16"}, {}), ("bert", {"label_skew": "mask"}, {"prefix_cache": "memory"}),
        ("llama-untied", {}, {"chunked_logits": "on"}), ("llama-untied", {"precision": "bfloat16"}, {"checkpointing": "on"}),
    ],
)  # fmt: skip
def test_recorded_passes_learn_the_same_to_the_bit(
    family: str, more: dict[str, Any], given: dict[str, str], homes: dict[str, Home], recorded: Recorded
) -> None:
    wanted = homes[family].request("layers.1", "head", codec="int4", steps=STEPS, **more)
    plain = train(wanted, Visitor("cpu", options(**given)))
    assert not recorded.recorders
    assert same(plain, train(wanted, Visitor("cpu", options(graphs="auto", **given))))
    [recorder] = recorded.recorders
    assert len(recorder.recordings) >= 2
    assert sum(each.replays for each in recorder.recordings) > STEPS // 2
    assert set(recorder.closed) == set(recorder.recordings)


def test_what_does_not_come_often_is_not_recorded(homes: dict[str, Home], recorded: Recorded) -> None:
    for steps in (3, 2 * (graphs.PLAIN + graphs.WORTHWHILE) - 2):
        train(homes["bert"].request("layers.1", steps=steps), Visitor("cpu", options(graphs="auto")))
    assert [recorder.rehearsals for recorder in recorded.recorders] == [0, 0]


def test_so_many_are_kept_and_no_more(homes: dict[str, Home], recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "AT_A_TIME", 1)
    train(homes["bert"].request("layers.1", steps=STEPS), Visitor("cpu", options(graphs="auto")))
    assert len(recorded.recorders[0].recordings) == 1


def test_what_takes_much_is_let_go_before_a_plain_step(homes: dict[str, Home], recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "IN_ALL", 3)
    recorded.make = lambda parameters: Repeater(parameters, taken=graphs.BESIDE + 1)
    wanted = homes["bert"].request("layers.1", steps=STEPS)
    plain = train(wanted, Visitor("cpu", options()))
    assert same(plain, train(wanted, Visitor("cpu", options(graphs="auto"))))
    [recorder] = recorded.recorders
    assert len(recorder.recordings) == 3, "as many as there may be in all"
    assert set(recorder.closed) == set(recorder.recordings)


class Unwilling(Repeater):
    """Raises in its rehearsals, or while it records."""

    def __init__(self, parameters: Sequence[nn.Parameter], error: Exception, recording: bool) -> None:
        super().__init__(parameters)
        self.error, self.recording = error, recording

    def rehearse(self, work: Callable[[], Tensor]) -> Tensor:
        total = super().rehearse(work)
        if not self.recording:
            raise self.error
        return total

    def record(self, work: Callable[[], Tensor]) -> Repetition:
        super().record(work)
        raise self.error


@pytest.mark.parametrize("recording", [False, True])
def test_a_model_that_cannot_be_recorded_is_trained_plainly_and_not_tried_again(
    recording: bool, homes: dict[str, Home], recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    recorded.make = lambda parameters: Unwilling(parameters, RuntimeError("it waits\nfor the card"), recording)
    wanted = homes["bert"].request("layers.1", steps=STEPS)
    plain, warm = train(wanted, Visitor("cpu", options())), Visitor("cpu", options(graphs="auto"))
    with caplog.at_level(logging.WARNING):
        assert same(plain, train(wanted, warm))
        assert same(plain, train(wanted, warm))
    assert [r.getMessage() for r in caplog.records] == ["no CUDA graphs from here on in visits of layers.1: RuntimeError: it waits"]
    assert [recorder.rehearsals for recorder in recorded.recorders] == [1]


def test_a_card_that_is_full_while_it_records_is_tried_again_in_the_next_visit(homes: dict[str, Home], recorded: Recorded) -> None:
    recorded.make = lambda parameters: Unwilling(parameters, torch.OutOfMemoryError("full"), True)
    wanted = homes["bert"].request("layers.1", steps=STEPS)
    plain, warm = train(wanted, Visitor("cpu", options())), Visitor("cpu", options(graphs="auto"))
    assert same(plain, train(wanted, warm))
    assert same(plain, train(wanted, warm))
    assert [recorder.rehearsals for recorder in recorded.recorders] == [1, 1]


class Wrong(Repeater):
    """Its replays give other bits."""

    def record(self, work: Callable[[], Tensor]) -> Repetition:
        made = super().record(work)
        plain = made.replay

        def replay() -> None:
            plain()
            gradient = made._gradients[-1]
            assert gradient is not None
            gradient.view(-1)[0] += 1e-3

        made.replay = replay  # type: ignore[method-assign]
        return made


def test_a_recording_with_other_bits_is_not_used(homes: dict[str, Home], recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    recorded.make = Wrong
    wanted = homes["bert"].request("layers.1", steps=STEPS)
    assert same(train(wanted, Visitor("cpu", options())), train(wanted, Visitor("cpu", options(graphs="auto"))))
    assert "OtherBits" in caplog.text
    assert recorded.recorders[0].closed == recorded.recorders[0].recordings


def test_a_layer_that_draws_draws_what_it_would_have(homes: dict[str, Home], recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_total = graphs.Loss.total

    def drawing(self: Any, batch: Any, wanted: Any) -> Tensor:
        total: Tensor = plain_total(self, batch, wanted) * torch.rand(())
        return total

    monkeypatch.setattr(graphs.Loss, "total", drawing)
    wanted = homes["bert"].request("layers.1", steps=STEPS)
    assert same(train(wanted, Visitor("cpu", options())), train(wanted, Visitor("cpu", options(graphs="auto"))))
    assert recorded.recorders[0].rehearsals == 1, "its second try gave other bits"


def test_a_plain_step_that_finds_the_card_full_is_made_again_without_graphs(
    homes: dict[str, Home], recorded: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "AT_A_TIME", 1)
    wanted = homes["bert"].request("layers.1", steps=STEPS)
    plain = train(wanted, Visitor("cpu", options()))
    plainly = Graphs._plain

    def full(self: Graphs, step: Any) -> Tensor:
        loss = plainly(self, step)
        if self.kept:  # and some gradients are there
            raise torch.OutOfMemoryError("full")
        return loss

    monkeypatch.setattr(Graphs, "_plain", full)
    assert same(plain, train(wanted, Visitor("cpu", options(graphs="auto"))))
    assert "a step beside them found the card full" in caplog.text
    [recorder] = recorded.recorders
    assert recorder.closed == recorder.recordings
    assert len(recorder.recordings) == 1


def test_a_processor_records_nothing(homes: dict[str, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Graphs, "loss")
    wanted = homes["bert"].request("layers.1", steps=STEPS)
    assert same(train(wanted, Visitor("cpu", options())), train(wanted, Visitor("cpu", options(graphs="auto"))))


def test_what_was_found_of_masks_is_said_again() -> None:
    answers = MaskAnswers()
    whole, padded = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool).tril(2)
    for mask, found in ((whole, True), (padded, False)):
        with answers.noted():
            assert masking_utils._ignore_causal_mask_sdpa(mask, 4, 4, 0, 0) is found
            assert masking_utils.find_packed_sequence_indices(torch.arange(4)[None]) is None
        unseen = mask.to("meta")
        with answers.said():
            assert masking_utils._ignore_causal_mask_sdpa(unseen, 4, 4, 0, 0) is found
            assert masking_utils.find_packed_sequence_indices(torch.arange(4)[None].to("meta")) is None
            with pytest.raises(Unforeseen):
                masking_utils._ignore_causal_mask_sdpa(unseen, 4, 4, 0, 0)
    with answers.noted():
        assert masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 0, 1]])) is not None
    with answers.said(), pytest.raises(Unforeseen):
        masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 0, 1]]))
