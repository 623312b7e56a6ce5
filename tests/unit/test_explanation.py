"""Why nobody takes work that waits, of those who wait for work: said only where none of them may have it."""

from dataclasses import replace

from fedcybgd.coordinator.domain.opening import FIRST, Claimant, Opening
from fedcybgd.coordinator.services.read.explanation import not_taken
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.versions import ADAPTERS, SPOKEN

OPENING = Opening("asg", "run-1", "intents", None, frozenset(), False, None, False, FIRST)
ANN = Claimant("a", "ann", ClaimRequest(runs=["*"]), SPOKEN)


def test_whoever_may_have_it_is_on_the_way() -> None:
    assert not_taken(OPENING, [ANN]) is None
    assert not_taken(OPENING, []) is None, "nobody waits here"
    assert not_taken(replace(OPENING, open_to=frozenset({"bob"})), [ANN]) is None, "it is nothing to her"


def test_the_owner_has_not_consented() -> None:
    other = replace(ANN, request=ClaimRequest(runs=["bank-*"]))
    found = not_taken(OPENING, [other])
    assert found is not None
    assert "ann waits for work, but not of this run" in found[0]
    assert 'runs = ["intents"]' in found[1]
    assert not_taken(OPENING, [other, replace(ANN, id="b", name="bob")]) is None


def test_nobody_speaks_the_protocol() -> None:
    found = not_taken(replace(OPENING, needs=ADAPTERS), [replace(ANN, speaks=FIRST)])
    assert found is not None
    assert "ann (1.0)" in found[0]
    assert "update" in found[1]
