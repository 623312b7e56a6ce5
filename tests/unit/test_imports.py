"""Much is imported at once without what nobody uses, which is there again afterwards."""

import gc
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from fedcybgd.shared.host import imports

NOT_YET = "zipapp"
"""A module that nothing else imports."""


def test_what_nobody_uses_is_not_found_meanwhile_and_is_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NOT_YET, raising=False)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(imports, "UNUSED", (NOT_YET, "json"))
    with imports.at_once():
        assert find_spec(NOT_YET) is None
        assert find_spec("json") is not None, "what is used already stays"
        assert not gc.isenabled()
        with pytest.raises(ImportError):
            import_module(NOT_YET)
    assert find_spec(NOT_YET) is not None
    assert gc.isenabled()


def test_transformers_that_was_imported_before_keeps_what_it_may_have_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks once whether something is installed, and then imports it where it needs it."""
    monkeypatch.setitem(sys.modules, "transformers", sys)
    monkeypatch.setattr(imports, "UNUSED", (NOT_YET,))
    with imports.at_once():
        assert find_spec(NOT_YET) is not None
