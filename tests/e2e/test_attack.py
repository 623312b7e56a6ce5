"""The attacks that take seconds, on live processes; `make attack` tries all of them."""

from tests.attack.__main__ import chosen, go
from tests.attack.attack import ATTACKS, THREAT_MODEL, Attack, NotHeld, named, tried


def test_quick_attacks_are_held() -> None:
    verdicts = go(chosen([], quick=True))
    assert len(verdicts) >= 9
    assert {v.id: v.evidence for v in verdicts if not v.held} == {}


def test_the_threat_model_knows_every_attack_and_names_no_other() -> None:
    known = {attack.id for attack in ATTACKS}
    text = THREAT_MODEL.read_text()
    assert [id for id in known if f"`{id}`" not in text] == []
    assert named() <= known
    assert named(), "something is never held"


def test_what_comes_through_is_said() -> None:
    def through(_scene: object) -> str:
        raise NotHeld("it did")

    def broken(_scene: object) -> str:
        raise KeyError("x")

    assert tried(Attack("Z", "", through, False), None).word == "NOT HELD"
    assert tried(Attack("E", "", through, False), None).word == "not held, and named so"
    assert tried(Attack("Z", "", lambda _: "no", False), None).word == "held"
    assert not tried(Attack("Z", "", broken, False), None).held
