"""Tiny random language models in the layout of the rerankers people use, with byte-level tokenizers that know their special tokens."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from benchmarks.corpus import docstrings

POSITIONS = 700
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Architecture -> special tokens, and the words that the real vocabularies have as one token.
_KINDS = {
    "qwen3": (CHATML, ["yes", "no"]),
    "qwen2": (CHATML, ["1", "0"]),
    "gemma": (["<pad>", "<eos>", "<bos>"], ["Yes"]),
}
CHAT_TEMPLATE = (
    "<|im_start|>system\n{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first | default('Judge.') }}"
    "<|im_end|>\n<|im_start|>user\n<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
    "<|im_start|>assistant\n{% if thinking is defined and not thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def tiny_reranker(path: Path, architecture: str, *, max_tokens: int = POSITIONS, template: str = "") -> Path:
    """A *ForCausalLM of `architecture` (qwen3, qwen2, gemma), with a chat template if one is given."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    tokenizer = _tokenizer(architecture)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.AutoConfig.for_model(
        architecture,
        **sizes,
        head_dim=16,
        intermediate_size=64,
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=architecture != "qwen2",
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        **({"use_sliding_window": False} if architecture.startswith("qwen") else {}),
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().save_pretrained(path)
    tokenizer.model_max_length = max_tokens
    tokenizer.chat_template = template or None
    tokenizer.save_pretrained(path)
    return path


def as_cross_encoder(path: Path, folder: Path, answers: tuple[int, ...], **settings: Any) -> Path:
    """`folder`, a tiny reranker, as sentence-transformers saves a CrossEncoder around it; `settings` as CrossEncoder takes them."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import LogitScore, Transformer

    options = settings.pop("processing_kwargs", None)
    transformer = Transformer(str(folder), transformer_task="text-generation", processing_kwargs=options)
    CrossEncoder(modules=[transformer, LogitScore(*answers)], device="cpu", **settings).save(str(path))
    return path


@functools.cache
def _trained(architecture: str) -> Tokenizer:
    special, words = _KINDS[architecture]
    tokenizer = Tokenizer(models.BPE())
    # As Qwen's: a space goes with the word after it, and line breaks with the punctuation before them.
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(itertools.islice(docstrings(), 300), words * 500), trainer)
    return tokenizer


def _tokenizer(architecture: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    special, words = _KINDS[architecture]
    trained = _trained(architecture)
    missing = [word for word in words if trained.token_to_id(word) is None]
    assert not missing, f"the tiny vocabulary lacks {missing}"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(json.loads(trained.to_str()))),
        pad_token=special[0],
        bos_token=special[2],
        eos_token=special[1],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
