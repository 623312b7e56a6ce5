"""What transformers finds when it looks at the values of attention masks, noted once and said again where nobody may look.

A mask that hides nothing is left out of the attention, which is then computed by another kernel, with other last bits. transformers looks
at the mask to find that out, and takes another way where a CUDA graph is captured. What it finds depends on shapes, and on whether the
whole batch is padded nowhere: batches that have both in common get the same answers.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from transformers import masking_utils

LOOKING = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa", "find_packed_sequence_indices")
"""Functions that look: whether a mask can be left out, and which rows are packed together (None: none are)"""


class Unforeseen(Exception):
    """A question that was not asked before, or whose answer is a tensor."""


class MaskAnswers:
    """The answers of one forward pass, in order; layers that run once more in the backward pass ask nothing."""

    def __init__(self) -> None:
        self._answers: list[tuple[str, bool | None]] = []

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Within it what is asked is answered as always, and noted."""
        self._answers = []
        return _replaced(self._noting)

    def said(self) -> contextlib.AbstractContextManager[None]:
        """Within it what was noted is said again. Raises `Unforeseen` where something else is asked."""
        left = iter(list(self._answers))

        def saying(name: str, _plain: Callable[..., Any]) -> Callable[..., Any]:
            def say(*_args: Any, **_kwargs: Any) -> bool | None:
                asked, answer = next(left, ("nothing", None))
                if asked != name:
                    raise Unforeseen(f"{name} was asked, and {asked} before")
                return answer

            return say

        return _replaced(saying)

    def _noting(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            found = plain(*args, **kwargs)
            if name.startswith("_ignore"):
                self._answers.append((name, bool(found)))
            else:  # a tensor of packed rows is said by nobody: the question is unforeseen
                self._answers.append((name if found is None else f"packed rows by {name}", None))
            return found

        return note


@contextlib.contextmanager
def _replaced(by: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    plain = {name: function for name in LOOKING if (function := getattr(masking_utils, name, None)) is not None}
    for name, function in plain.items():
        setattr(masking_utils, name, by(name, function))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(masking_utils, name, function)
