"""A model of a directory says of rows what transformers says, row by row, whatever rows stand beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.models.prediction import ModelUnusable, Predictor, spec_of
from tests.support.models import WORDS, tiny_vit, word_piece

TEXTS = [" ".join(WORDS[n : n + 5 - n % 5]) for n in range(12)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
        id2label={0: "lost", 1: "top-up", 2: "other"}, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    word_piece(folder)
    return folder


def test_labels_are_those_of_transformers(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.setattr("fedcybgd.shared.models.prediction.ROWS_AT_ONCE", 5)
    monkeypatch.setattr("fedcybgd.shared.models.prediction.TOKENS_A_BATCH", 20)
    spec = spec_of(classifier)
    assert (spec.task, spec.label_names) == ("text-classification", ["lost", "top-up", "other"])
    found = list(Predictor(classifier, spec).predictions(({"text": text} for text in TEXTS), "rows"))
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(classifier).eval(), AutoTokenizer.from_pretrained(classifier)
    for text, one in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            said = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert one.label == int(said.argmax())
        assert one.probability == pytest.approx(float(said.max()), abs=1e-5)
    assert len({one.label for one in found}) > 1


def test_losses_are_those_of_each_text_by_itself(llama: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama).eval(), AutoTokenizer.from_pretrained(llama)
    predictor = Predictor(llama, spec_of(llama))
    texts = [*TEXTS, "a"]
    found = list(predictor.predictions(({"text": text} for text in texts), "rows"))
    for text, one in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        ids = torch.tensor([predictor._encoder._around()[0] + ids[0].tolist()]) if predictor._encoder._around()[0] else ids  # type: ignore[attr-defined]
        if ids.shape[1] < 2:
            assert (one.loss, one.tokens) == (None, 0)
            continue
        with torch.inference_mode():
            assert one.loss == pytest.approx(float(model(ids, labels=ids).loss), abs=1e-4)
        assert one.tokens == ids.shape[1] - 1


def test_a_prompt_goes_on_as_it_does_alone(llama: Path) -> None:
    predictor = Predictor(llama, spec_of(llama))
    rows = [{"prompt": text} for text in TEXTS]
    together = list(predictor.continuations(rows, "rows", 6))
    assert together == [one for row in rows for one in predictor.continuations([row], "rows", 6)]
    assert all(one.tokens and one.tokens <= 6 and one.continuation for one in together)
    with pytest.raises(ModelUnusable, match="128 positions"):
        next(predictor.continuations(rows, "rows", 128))


def test_a_row_that_cannot_be_read_is_named(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcybgd.shared.models.prediction.ROWS_AT_ONCE", 2)
    predictor = Predictor(classifier, spec_of(classifier))
    monkeypatch.setattr(predictor._encoder, "_rows", 99)
    monkeypatch.setattr(predictor._encoder, "tokenizer", lambda texts, *_, **__: {"input_ids": [[100 if "pin" in t else 1] for t in texts]})
    with pytest.raises(DataError, match="rows row 3"):
        list(predictor.predictions([{"text": "a"}, {"text": "b"}, {"text": "pin"}], "rows"))


def test_images_are_asked_about_too(tmp_path: Path) -> None:
    import io

    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification

    from fedcybgd.shared.files.images import StoredImage

    folder = tiny_vit(tmp_path)
    ViTForImageClassification(ViTConfig.from_pretrained(folder, num_labels=4)).save_pretrained(folder)

    def image(level: int) -> dict[str, Any]:
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (level, 0, 0)).save(data, "PNG")
        return {"image": StoredImage("row", data.getvalue(), None, {})}

    found = list(Predictor(folder, spec_of(folder)).predictions([image(0), image(255)], "rows"))
    assert [one.label in range(4) for one in found] == [True, True]
    assert found[0].probability != found[1].probability


def test_what_is_no_finished_model_is_refused(bert: Path, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="BertModel"):
        spec_of(bert)
    with pytest.raises(ModelUnusable, match=r"no config\.json"):
        spec_of(tmp_path)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((classifier / name).read_bytes())
    with pytest.raises(ModelUnusable, match="cannot be loaded"):
        Predictor(tmp_path, spec_of(tmp_path))
    base = json.loads((classifier / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(base | {"num_hidden_layers": 2}))
    (tmp_path / "model.safetensors").write_bytes((classifier / "model.safetensors").read_bytes())
    with pytest.raises(ModelUnusable, match="lacks weights"):
        Predictor(tmp_path, spec_of(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelUnusable, match="adapters alone"):
        spec_of(tmp_path)
