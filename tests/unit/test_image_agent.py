"""An agent with images lends the folder that its owner named, says whether its rows fit, and is planned for by what its model makes of an image."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import check
from fedcybgd.agent.consent import source_of
from fedcybgd.agent.messages import DataSource
from fedcybgd.agent.policy import Policy
from fedcybgd.agent.readiness import judge
from fedcybgd.agent.rooms import walls_of
from fedcybgd.agent.settings import Home
from fedcybgd.coordinator.domain.run_file import RunFile, RunFileInvalid, parse_run_file
from fedcybgd.coordinator.planning.forecast import AgentFacts, forecast
from fedcybgd.coordinator.planning.shapes import BlockShape, ModelShape, blocks_of_run
from fedcybgd.shared.contract.agents import RunOffer
from fedcybgd.shared.models.blocks import partition
from tests.support.families import IMAGES, config_of
from tests.support.pictures import beside, picture, rows

SAMPLE = json.loads((Path(__file__).parents[1] / "wire" / "samples" / "RunOffer.json").read_text())["full"]
OFFER = RunOffer.model_validate(
    SAMPLE
    | {"name": "mine", "task": "image-classification", "fields": ["image and label"], "num_labels": 2, "label_names": None, "visits": None}
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "rows").mkdir()
    beside(tmp_path / "rows", rows(4))
    (tmp_path / "agent.toml").write_text(
        'coordinator = "http://localhost"\n[data.a]\npath = "rows/rows.jsonl"\nimages = "images"\nruns = ["mine"]\n'
        '[data.b]\npath = "other.jsonl"\nimages = "/photos"\n'
    )
    return Home(tmp_path)


def test_the_folder_of_images_is_lent_with_the_rows_and_no_other(home: Home, tmp_path: Path) -> None:
    config = home.load_config()
    lent = tmp_path / "rows"
    assert walls_of(home, config).read == [home.residuals, lent / "images", lent / "rows.jsonl"]
    assert source_of(home, config.data["a"]).images == str(lent / "images")
    assert DataSource(path="x").images is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "2.png").unlink(), "row 3: the image '2.png' is not there"),
        (lambda folder: (folder / "1.png").write_bytes(b"\xff\xd8 is no picture"), "row 2: the image is no PNG or JPEG file"),
        (lambda folder: (folder / "1.png").write_bytes(picture(1, mode="RGBA")), None),
    ],
)
def test_an_agent_says_whether_its_images_fit(spoil: Any, said: str | None, home: Home) -> None:
    spoil(home.path / "rows" / "images")
    verdict = judge(home, home.load_config(), Policy(), OFFER)
    assert (verdict.reason, verdict.rows) == ((None, 4) if said is None else ("data_invalid", 0))
    assert (said or "") in verdict.message


@pytest.mark.parametrize(
    ("more", "said"), [("", "image-classification needs `labels`"), (", labels: 3, max_length: 64", "`max_length` means nothing for image")]
)
def test_a_task_of_images_has_labels_and_no_length(more: str, said: str) -> None:
    with pytest.raises(RunFileInvalid, match=f"line 3: task: .*{said}"):
        parse_run_file("name: r\nmodel: m\ntask: {kind: image-classification" + more + "}\n")


def test_check_says_how_large_the_images_are(home: Home) -> None:
    config = home.load_config()
    nobody: Any = None
    found = check._run(home, config, OFFER, judge(home, config, Policy(), OFFER), nobody)
    assert found.ok
    assert "4 rows of data a fit" in found.found
    assert "images of 8 × 8 to 13 × 9 pixels" in found.found


@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2", "dinov2-registers"])
def test_what_is_planned_with_is_what_the_model_has(family: str) -> None:
    model = IMAGES[family][1](3)
    config = config_of(model)
    tokens: list[int] = []
    model.get_submodule(
        next(name for name, _ in model.named_modules() if name.endswith((".layers.0", ".layer.0")))
    ).register_forward_pre_hook(
        lambda _module, args, kwargs: tokens.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True
    )
    import torch

    model(pixel_values=torch.zeros(1, 3, 8, 8))
    spec = RunFile.model_validate(
        {"name": "r", "model": "m", "task": {"kind": "image-classification", "labels": 7}, "train": {"steps": 5, "batch_size": 2},
         "schedule": {"blocks": ["layers"], "always": ["head"]}}
    )  # fmt: skip
    shape = ModelShape.of(config)
    assert shape.row_tokens(spec) == tokens[0]
    added = [BlockShape(b.name, b.kind, {t.name: t.shape for t in b.tensors}) for b in partition(model)]
    blocks, visited = blocks_of_run(spec, config, [b for b in added if b.kind != "head"])
    head = {t.name: (7, *t.shape[1:]) for b in partition(model) if b.kind == "head" for t in b.tensors}
    assert blocks[-1].tensors == head
    found = forecast(spec, shape, blocks, visited, [AgentFacts("a")], tokens_per_s=1.0)
    assert found.agents[0].training_hours == pytest.approx(3 * 5 * 2 * tokens[0] / 3600)
