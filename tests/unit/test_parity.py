"""What `from_pretrained` makes of a directory is what the product makes of it, before and after a visit, or it is refused with a reason."""

from pathlib import Path

import pytest

from tests.support.parity import FAMILIES, judge
from tests.support.shapes import SHAPES

REFUSED = {
    "prefix of a wrapper": "missing: ",
    "tie under neither name": "missing: ",
    "a file is missing": "files of the checkpoint are missing: model-00002-of-00003.safetensors",
    "more embedding rows": "must be a float",
    "fewer embedding rows": "must be a float",
    "another vocabulary size": "must be a float",
    "a tensor is missing": "",
    "a layer too many": "unknown: ",
    "integers": "is I8",
}
"""Shapes that no family may be added in, and what the reason says. Transformers refuses them too, or makes up what is missing."""
FRESH = {
    "base alone", "head under another name", "head of other labels", "labels of the head contradict the configuration",
    "tied flag contradicts",
}  # fmt: skip
"""Shapes whose head transformers makes up; a language model's is refused with advice where nothing would train it."""
EVERY_SHAPE = ("bert", "llama-tied", "gpt2-classifier")


def check(family: str, shape: str, folder: Path, trained: bool) -> None:
    verdict = judge(family, shape, folder, trained)
    if verdict is None:
        return
    if shape in REFUSED:
        assert verdict.outcome == "refused", verdict
        assert REFUSED[shape] in verdict.reason
    elif shape in FRESH and verdict.outcome == "refused":
        assert FAMILIES[family][0] == "causal-lm", verdict
        assert "must be trained along" in verdict.reason
    else:
        assert verdict.outcome in ("equal", "fresh" if shape in FRESH else "equal"), verdict


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_transformers_saves_it(family: str, tmp_path: Path) -> None:
    check(family, "as saved", tmp_path, trained=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", EVERY_SHAPE)
def test_every_odd_shape_of_saving(family: str, shape: str, tmp_path: Path) -> None:
    check(family, shape, tmp_path, trained=False)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in EVERY_SHAPE])
def test_every_family_in_some_odd_shapes(family: str, tmp_path: Path) -> None:
    """A few for each, others for the next, so that a run of all is quick; `python -m benchmarks.parity` has the whole matrix."""
    number = list(FAMILIES).index(family)
    for index, shape in enumerate(SHAPES):
        if (index + 7 * number) % 17 == 0:
            check(family, shape, tmp_path / str(index), trained=False)
