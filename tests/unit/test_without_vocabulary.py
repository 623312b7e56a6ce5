"""A tokenizer whose tokens are bytes or characters has no vocabulary, and its model is uploaded all the same."""

import json
from pathlib import Path

import pytest
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from fedcybgd.client.errors import FileUnusable
from fedcybgd.client.model_files import files_of
from fedcybgd.coordinator.domain.model_files import check
from fedcybgd.shared.contract.model_uploads import TOKENIZER, WITHOUT_VOCABULARY, ModelFile
from fedcybgd.shared.files.safetensors_header import pack_header


def directory(place: Path, settings: str) -> list[str]:
    for name, text in (("config.json", "{}"), ("added_tokens.json", "{}"), (TOKENIZER, settings)):
        (place / name).write_text(text)
    (place / "model.safetensors").write_bytes(pack_header([]))
    return [path.name for path in files_of(place)]


@pytest.mark.parametrize(
    "settings", [*(json.dumps({"tokenizer_class": name}) for name in WITHOUT_VOCABULARY), "{}", "[]", "{", '{"tokenizer_class": null}']
)
def test_it_is_sent_and_awaited(settings: str, tmp_path: Path) -> None:
    names = directory(tmp_path, settings)
    assert TOKENIZER in names
    check([ModelFile(name=name, digest=f"{number:064x}", size=2) for number, name in enumerate(names)], 1 << 20)


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_of_any_other_the_vocabulary_is_missed_before_a_byte(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileUnusable, match="no tokenizer with its vocabulary"):
        directory(tmp_path, json.dumps({"tokenizer_class": name}))


def test_these_are_all_that_transformers_has() -> None:
    known = {name: tokenizer_class_from_name(name) for name in TOKENIZER_MAPPING_NAMES.values() if isinstance(name, str)}
    assert {name for name, found in known.items() if getattr(found, "vocab_files_names", "?") == {}} == {*WITHOUT_VOCABULARY}
