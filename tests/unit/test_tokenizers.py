"""A tokenizer is tried when its model is added: it is stored so that it gives the same tokens everywhere, or it is refused."""

import base64
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from fedcybgd.coordinator.engine import tokenizers
from fedcybgd.coordinator.engine.model_directory import ModelDirectory, ModelRefused
from fedcybgd.coordinator.engine.tokenizers import Tried, import_tokenizer
from fedcybgd.coordinator.storage.local import LocalBlobStore
from tests.support.models import WORDS, word_piece

TEXTS = ["my card is lost", "why", "  the money ", "card card unheard-of"]
SYMBOLS = ["[CLS]", "[SEP]", "[MASK]", "<pad>", "<cls>", "<sep>", "<mask>"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 437985387\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def add(folder: Path, tmp_path: Path) -> Callable[..., Tried]:
    def add(model_type: str, rows: int | None = None) -> Tried:
        return import_tokenizer(LocalBlobStore(tmp_path / "blobs"), ModelDirectory(folder), {"model_type": model_type}, rows)

    return add


@pytest.fixture
def refused(add: Callable[..., Tried]) -> Callable[..., str]:
    def refused(model_type: str = "bert", rows: int | None = None) -> str:
        with pytest.raises(ModelRefused) as error:
            add(model_type, rows)
        return error.value.message

    return refused


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A real sentencepiece vocabulary of some words."""

    def train(kind: str) -> Path:
        buffer, path = io.BytesIO(), tmp_path_factory.getbasetemp() / f"{kind}.model"
        if not path.exists():
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([" ".join(WORDS)] * 30 + WORDS), model_writer=buffer, vocab_size=60, model_type=kind,
                hard_vocab_limit=False, minloglevel=2, num_threads=1, user_defined_symbols=SYMBOLS,
            )  # fmt: skip
            path.write_bytes(buffer.getvalue())
        return path

    return train


def settings(folder: Path, **values: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def stored(tried: Tried, tmp_path: Path, model_type: str) -> Path:
    """What an agent lays out from what was stored."""
    place = tmp_path / "agent"
    place.mkdir()
    store = LocalBlobStore(tmp_path / "blobs")
    for file in tried.files:
        shutil.copyfile(store.path(file.digest), place / file.name)
    (place / "config.json").write_text(json.dumps({"model_type": model_type}))
    return place


@pytest.mark.parametrize(
    ("model_type", "name", "kind"),
    [
        ("deberta-v2", "spm.model", "unigram"),
        ("xlm-roberta", "sentencepiece.bpe.model", "unigram"),
        ("camembert", "sentencepiece.bpe.model", "unigram"),
        ("albert", "spiece.model", "unigram"),
        ("xlnet", "spiece.model", "unigram"),
        ("llama", "tokenizer.model", "bpe"),
        ("gemma", "tokenizer.model", "bpe"),
    ],
)
def test_a_sentencepiece_vocabulary_becomes_a_tokenizer_that_agents_can_run(
    folder: Path, tmp_path: Path, add: Any, pieces: Any, monkeypatch: pytest.MonkeyPatch, model_type: str, name: str, kind: str
) -> None:
    shutil.copy(pieces(kind), folder / name)
    settings(folder, model_max_length=512)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    original = AutoTokenizer.from_pretrained(folder)
    tried = add(model_type)
    assert {name, "tokenizer.json"} <= {f.name for f in tried.files}
    assert "converted" in tried.notes[0]
    for package in ("sentencepiece", "tiktoken"):
        monkeypatch.setitem(sys.modules, package, None)  # an agent has neither
    theirs = AutoTokenizer.from_pretrained(stored(tried, tmp_path, model_type))
    assert theirs(TEXTS, TEXTS[::-1])["input_ids"] == original(TEXTS, TEXTS[::-1])["input_ids"]
    assert (theirs.padding_side, theirs.pad_token_id) == (original.padding_side, original.pad_token_id)


def vocab_txt(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")


def vocab_and_merges(folder: Path) -> None:
    letters = sorted({*"".join(WORDS), "Ġ", "<|endoftext|>"})
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate([*letters, "th", "the"])}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")


def codes(folder: Path) -> None:
    (folder / "vocab.txt").write_text("".join(f"{c} 9\n" for c in [*"abcdefghijklmnopqrstuvwxyz", *WORDS]))
    (folder / "bpe.codes").write_text("t h 9\nth e</w> 9\n")


def ranks(folder: Path) -> None:
    """As tiktoken writes its vocabulary."""
    tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the"]
    (folder / "tokenizer.model").write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    settings(folder, tokenizer_class="PreTrainedTokenizerFast")


@pytest.mark.parametrize(
    ("model_type", "write", "names"),
    [
        ("bert", vocab_txt, {"vocab.txt", "tokenizer.json"}),
        ("gpt2", vocab_and_merges, {"vocab.json", "merges.txt", "tokenizer.json"}),
        ("roberta", vocab_and_merges, {"vocab.json", "merges.txt", "tokenizer.json"}),
        ("llama", ranks, {"tokenizer.model", "tokenizer.json"}),
    ],
)
def test_other_vocabularies_are_stored_whole(
    folder: Path, tmp_path: Path, add: Any, model_type: str, write: Callable[[Path], None], names: set[str]
) -> None:
    write(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    original = AutoTokenizer.from_pretrained(folder)
    tried = add(model_type)
    assert names <= {f.name for f in tried.files}
    theirs = AutoTokenizer.from_pretrained(stored(tried, tmp_path, model_type))
    assert theirs(TEXTS)["input_ids"] == original(TEXTS)["input_ids"]


def test_a_tokenizer_without_a_fast_form_is_stored_as_it_is(folder: Path, tmp_path: Path, add: Any) -> None:
    codes(folder)
    settings(folder, tokenizer_class="PhobertTokenizer")
    tried = add("roberta")
    assert {"vocab.txt", "bpe.codes"} <= {f.name for f in tried.files}
    assert "no fast form" in tried.notes[0]


@pytest.mark.parametrize("named", ["AutoTokenizer", "RagTokenizer", "ProcessorMixin"])
def test_a_class_that_is_no_tokenizer_is_no_failure(folder: Path, add: Any, named: str) -> None:
    settings(folder, tokenizer_class=named)
    with pytest.raises(ModelRefused, match=r"has no tokenizer: none of .*tokenizer.json"):
        add("llama")


def test_a_tokenizer_that_has_all_it_needs_is_stored_byte_by_byte(folder: Path, tmp_path: Path, add: Any) -> None:
    word_piece(folder)
    place = stored(add("bert", rows=100), tmp_path, "bert")
    for path in folder.iterdir():
        assert (place / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("settings", ['{"cache_implementation": "nope"}', '{"watermarking_config": 5}', '{"temperature": 0.5}'])
def test_settings_of_generation_that_transformers_does_not_read_are_left_out(folder: Path, add: Any, settings: str) -> None:
    """With them an export could not be loaded."""
    word_piece(folder)
    (folder / "generation_config.json").write_text(settings)
    tried, is_read = add("bert"), "temperature" in settings
    assert ("generation_config.json" in {f.name for f in tried.files}) is is_read
    assert any("generation_config.json is left out" in note for note in tried.notes) is not is_read


def test_scripts_that_a_tokenizer_does_not_know_are_said(folder: Path, add: Any) -> None:
    word_piece(folder)
    [note] = add("bert").notes
    assert "does not know" in note
    assert "Cyrillic" in note
    assert "Chinese" in note
    assert "Latin," not in note


@pytest.mark.parametrize(
    ("model_type", "named", "said"),
    [
        (
            "bert",
            "BertTokenizer",
            "as BertTokenizer it gives other tokens than its tokenizer.json says: the p ##a in place of The p ##a. Where",
        ),
        ("distilbert", None, "it gives other tokens"),
        ("roberta", "RobertaTokenizerFast", "as RobertaTokenizer it gives other tokens"),
        ("bert", "TokenizersBackend", None),
        ("bert", "PreTrainedTokenizerFast", None),
    ],
)
def test_a_class_that_gives_other_tokens_than_the_file_is_told_of(
    folder: Path, add: Any, model_type: str, named: str | None, said: str | None
) -> None:
    """Transformers takes the class's word for it: a cased vocabulary is lowered, digits are split otherwise."""
    word_piece(folder)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    words = values["model"]["vocab"]
    words |= {word.capitalize(): len(words) + place for place, word in enumerate(WORDS)}
    path.write_text(json.dumps(values))
    settings(folder, unk_token="[UNK]", **({} if named is None else {"tokenizer_class": named}))
    notes = [note for note in add(model_type).notes if "other tokens" in note]
    assert [said is not None and said in note for note in notes] == [True] * (said is not None), notes


def test_a_tokenizer_that_is_an_empty_stand_in_is_refused(folder: Path, refused: Any) -> None:
    settings(folder, do_lower_case=False)
    assert "has no tokenizer: none of spm.model, tokenizer.json is there" in refused("deberta-v2")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    assert "knows no word" in refused("bert")


def test_a_tokenizer_that_takes_everything_for_unknown_is_refused(folder: Path, refused: Any) -> None:
    word_piece(folder)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["pre_tokenizer"] = {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}
    values["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "\u0416"}
    path.write_text(json.dumps(values))
    assert "takes every text for unknown, also the words of its own vocabulary" in refused()


def test_tokens_without_a_row_are_said_or_refused(folder: Path, add: Any, refused: Any) -> None:
    word_piece(folder)
    assert not any("no row" in note for note in add("bert", rows=100).notes)
    assert "1 tokens of its tokenizer have no row" in next(n for n in add("bert", rows=78).notes if "row" in n)
    message = refused("bert", rows=20)
    assert "its embeddings have 20 rows" in message
    assert "gives token" in message


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(a+a+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_an_expression_that_never_ends_is_refused(folder: Path, refused: Any, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr(tokenizers, "TRIAL_S", 3.0)
    word_piece(folder)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(values))
    message = refused()
    assert "may never end" in message or "cannot be used" in message


def test_one_that_makes_gigabytes_of_a_short_text_is_refused(folder: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "TRIAL_BYTES", 300 << 20)
    word_piece(folder)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 32}
    values["normalizer"] = {"type": "Sequence", "normalizers": [longer] * 5}
    path.write_text(json.dumps(values))
    assert "takes more than 0.3 GB of memory" in refused()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "spm.model", "special_tokens_map.json"])
def test_a_pointer_of_git_lfs_is_called_by_its_name(folder: Path, refused: Any, name: str) -> None:
    word_piece(folder)
    (folder / name).write_text(POINTER)
    assert "git-lfs" in refused("deberta-v2")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", "{", "tokenizer.json is no JSON"),
        ("tokenizer.json", "[]", "tokenizer.json is no JSON object"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be used"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Magic"}}', "tokenizer.json cannot be used"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is no JSON"),
        ("special_tokens_map.json", "{'a'}", "special_tokens_map.json is no JSON"),
        ("added_tokens.json", "", "added_tokens.json is no JSON"),
    ],
)
def test_a_broken_file_is_named(folder: Path, refused: Any, name: str, text: str, said: str) -> None:
    word_piece(folder)
    (folder / name).write_text(text)
    assert said in refused()


def test_the_extra_that_is_missing_is_named(folder: Path, refused: Any, pieces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(pieces("unigram"), folder / "spm.model")
    settings(folder, do_lower_case=False)
    monkeypatch.setattr(tokenizers, "_installed", lambda name: name != "sentencepiece")
    message = refused("deberta-v2")
    assert "needs sentencepiece to convert it" in message
    assert "the extra `tokenizers`" in message


@pytest.mark.parametrize("data", [b"", b"\0" * 50, b"not a vocabulary"])
def test_a_damaged_vocabulary_is_refused(folder: Path, refused: Any, data: bytes) -> None:
    (folder / "spm.model").write_bytes(data)
    settings(folder, do_lower_case=False)
    assert str(folder) in refused("deberta-v2")


def byte_pairs(folder: Path) -> None:
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([" ".join(WORDS)] * 30, vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made.save_model(str(folder))


@pytest.mark.parametrize("absent", ["merges.txt", "vocab.json"])
def test_half_a_vocabulary_is_refused_and_the_other_half_named(folder: Path, add: Any, refused: Any, absent: str) -> None:
    byte_pairs(folder)
    assert add("roberta").notes == ["its tokenizer was converted to a tokenizer.json"]
    (folder / absent).unlink()
    assert f"{absent} is not there" in refused("roberta")


@pytest.mark.parametrize("merges", ["", "#version: 0.2\n"])
def test_a_vocabulary_without_its_merges_is_refused(folder: Path, refused: Any, merges: str) -> None:
    byte_pairs(folder)
    (folder / "merges.txt").write_text(merges)
    assert "none of the longer words of its vocabulary" in refused("roberta")


def test_so_is_a_tokenizer_json_without_them(folder: Path, add: Any, refused: Any) -> None:
    byte_pairs(folder)
    (folder / "config.json").write_text('{"model_type": "roberta"}')
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    path = folder / "tokenizer.json"
    assert add("roberta").files
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"model": values["model"] | {"merges": []}}))
    assert "none of the longer words of its vocabulary" in refused("roberta")


@pytest.mark.parametrize("lines", ["", "<html>\n</html>\n", "[PAD]\n[CLS]\n[SEP]\nalpha\n"])
def test_a_vocabulary_without_the_unknown_word_is_refused_in_words(folder: Path, refused: Any, lines: str) -> None:
    (folder / "vocab.txt").write_text(lines)
    assert str(folder) in refused("bert")


def test_so_is_one_without_the_tokens_of_its_class(folder: Path, refused: Any) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nL\nA\n")
    settings(folder, tokenizer_class="EsmTokenizer")
    assert "perhaps its vocabulary lacks a special token" in refused("esm")
