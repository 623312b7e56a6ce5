"""Before consent an owner reads what the deltas of this very run can tell, and of no other."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent.policy import Policy, PolicyRefused, check_offer
from fedcybgd.agent.telling import what_counts_tell, what_deltas_tell
from fedcybgd.shared.contract.agents import RunOffer

SAMPLE = json.loads((Path(__file__).parents[1] / "wire" / "samples" / "RunOffer.json").read_text())["full"]
QUIET = {"blocks": ["layers.0", "norm"], "steps": 100, "batch_size": 16, "delta_patches": False}


def offer(task: str = "text-classification", **visits: Any) -> RunOffer:
    return RunOffer.model_validate(SAMPLE | {"task": task, "visits": QUIET | visits})


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (offer(blocks=["embeddings"]), ["names every token", "longest"]),
        (offer("causal-lm", blocks=["embeddings"]), ["names every token", "tied"]),
        (offer(blocks=["head"]), ["which labels", "exactly", "class means"]),
        (offer("image-classification", blocks=["embeddings"]), ["patches of your images"]),
        (offer("image-classification", blocks=["head"]), ["which labels", "single row"]),
        (offer(batch_size=1), ["single rows"]),
        (offer(batch_size=4, steps=4), ["16 rows at the most"]),
        (offer(delta_patches=True), ["other agents"]),
        (offer(all_at_once=True), ["whole model exact", "all blocks"]),
        (offer(blocks=["adapters"], all_at_once=True), ["beside matrices", "all of these layers"]),
        (offer(corrects="all"), ["factors beside matrices", "all of these layers"]),
        (offer(corrects="above"), ["factors beside matrices", "from its own upwards"]),
        (offer(weighed_by_rows=True), ["counts by the rows", "how many"]),
        (offer(), ["no way is known"]),
        (offer("causal-lm", blocks=["head"]), ["no way is known"]),
        (RunOffer.model_validate(SAMPLE | {"visits": None}), ["does not say"]),
    ],
)
def test_what_applies_is_said(run: RunOffer, words: list[str]) -> None:
    said = " ".join(what_deltas_tell(run))
    assert all(word in said for word in words)
    assert len(what_deltas_tell(run)) == (1 + (run.task == "causal-lm") if "names every token" in said else 1), "and nothing else"


@pytest.mark.parametrize(
    ("rules", "run"),
    [
        ({"least": {"batch_size": 8}}, offer(batch_size=4)), ({"most": {"steps": 10}}, offer()), ({"work": {"tasks": ["causal-lm"]}}, offer()),
        ({"work": {"runs": ["others"]}}, offer()), ({"work": {"models": ["0" * 64]}}, offer()),
    ],
)  # fmt: skip
def test_a_run_that_the_policy_forbids_is_known_before_its_first_assignment(rules: Any, run: RunOffer) -> None:
    with pytest.raises(PolicyRefused, match="owner's policy"):
        check_offer(Policy.model_validate(rules), run)


def test_what_counts_of_labels_tell_is_said_with_their_numbers() -> None:
    said = what_counts_tell({"a": 1500, "b": 3}, 77)
    assert "2 of 77 labels, 3 to 1,500 rows each" in said
    assert "provenance" in said


def test_a_block_that_is_never_trained_is_a_reason_only_where_it_is_in_every_visit() -> None:
    policy = Policy.model_validate({"work": {"never_train": ["norm"]}})
    check_offer(policy, offer())
    with pytest.raises(PolicyRefused, match=r"work\.never_train: block norm"):
        check_offer(policy, offer(all_at_once=True))
    check_offer(policy, offer(corrects="all"))
    layer = Policy.model_validate({"work": {"never_train": ["layers.0"]}})
    check_offer(layer, offer(corrects="above"))
    with pytest.raises(PolicyRefused, match=r"work\.never_train: block layers.0"):
        check_offer(layer, offer(corrects="all"))
