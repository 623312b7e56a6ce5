"""Tiny random models with real tokenizers, saved as transformers saves them."""

from pathlib import Path

# fmt: off
WORDS = [
    "the", "a", "card", "money", "bank", "lost", "stolen", "pay", "transfer", "top", "up", "why", "how", "my", "is", "was", "not", "working",
    "please", "help", "i", "need", "new", "pin",
]
# fmt: on


def word_piece(folder: Path, most: int | None = None) -> None:
    """A tokenizer for these words and every other one, of `most` pieces at the most."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = special + [chr(c) for c in range(97, 123)] + [f"##{chr(c)}" for c in range(97, 123)] + WORDS
    vocabulary = {piece: index for index, piece in enumerate([*dict.fromkeys(pieces)][:most])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    fast.save_pretrained(folder)


def tiny_bert(folder: Path, layers: int = 2, seed: int = 0, **more: float) -> Path:
    """A BertModel of about 10,000 parameters, with a pooler and without a head; `more` is of its configuration."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
        **more,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    word_piece(folder)
    return folder


def tiny_llama(folder: Path, layers: int = 2, tied: bool = True, seed: int = 0, **more: int) -> Path:
    """A LlamaForCausalLM with the word-piece tokenizer; `more` overrides the configuration's sizes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 128,
    } | more  # fmt: skip
    config = LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=tied, bos_token_id=2, eos_token_id=3, pad_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    word_piece(folder)
    return folder


def tiny_gpt2(folder: Path, layers: int = 2, seed: int = 0) -> Path:
    """A GPT2LMHeadModel (tied head) with the word-piece tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=100, n_embd=32, n_layer=layers, n_head=2, n_positions=128, bos_token_id=2, eos_token_id=3, pad_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    word_piece(folder)
    return folder


def tiny_vit(folder: Path, layers: int = 2, seed: int = 0, **more: object) -> Path:
    """A ViTModel for images of 8 × 8 pixels, without a head, and its image processor."""
    import torch
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 8, "patch_size": 4}
    ViTModel(ViTConfig(num_hidden_layers=layers, **sizes | more), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder
