"""Tiny random checkpoints, saved as transformers and sentence-transformers save them, with a real fast tokenizer."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from benchmarks.corpus import docstrings
from lading.config.checkpoint import POSITIONS_AFTER_PADDING
from tests import families

VOCABULARY = 500
POSITIONS = 128  # max_position_embeddings of every tiny model
LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")

# Architecture -> what its config calls the sizes, where that is not the usual name.
_SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "qwen2": {"num_key_value_heads": 1},
    "llama": {"num_key_value_heads": 1},
}


def tiny_encoder(
    path: Path,
    architecture: str = "bert",
    *,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    max_tokens: int = 64,
    include_prompt: bool = True,
    dense: int = 0,
    **config: Any,
) -> Path:
    """A sentence-transformers folder of 32 dimensions (`dense`: projected to so many, through tanh).

    `pooling` is a mode of sentence-transformers' Pooling module: mean, cls, max, lasttoken, weightedmean, ...; `config`:
    further fields of config.json.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    encoder_alone = architecture in ("t5", "mt5", "umt5")
    auto_class = transformers.AutoModelForTextEncoding if encoder_alone else transformers.AutoModel
    _save(path, auto_class, architecture, **config)
    _write(
        path / "1_Pooling/config.json",
        {
            "embedding_dimension": config.get("hidden_size", 32),
            "pooling_mode": pooling,
            "include_prompt": include_prompt,
        },
    )
    _write(path / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    _write(
        path / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": prompts or {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    modules = [
        ("", "base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformer.modules.pooling.Pooling"),
    ]
    if dense:
        modules.append(("2_Dense", "base.modules.dense.Dense"))
        config = {
            "in_features": 32,
            "out_features": dense,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        config |= {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        _write(path / "2_Dense/config.json", config)
        generator = torch.Generator().manual_seed(1)
        weights = {
            "linear.weight": torch.randn(dense, 32, generator=generator),
            "linear.bias": torch.randn(dense, generator=generator),
        }
        save_file(weights, path / "2_Dense/model.safetensors")
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "base.modules.normalize.Normalize"))
        _write(path / modules[-1][0] / "config.json", {})
    listed = [
        {"idx": n, "name": str(n), "path": where, "type": f"sentence_transformers.{kind}"}
        for n, (where, kind) in enumerate(modules)
    ]
    _write(path / "modules.json", listed)
    return path


def tiny_cross_encoder(path: Path, architecture: str = "bert", *, activation: str = "Sigmoid", **config: Any) -> Path:
    """A *ForSequenceClassification with one label, as CrossEncoder saves it. `config`: further fields of config.json."""
    import transformers

    _save(path, transformers.AutoModelForSequenceClassification, architecture, num_labels=1, **config)
    config = json.loads((path / "config.json").read_text())
    config["sentence_transformers"] = {
        "activation_fn": f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
    }
    _write(path / "config.json", config)
    return path


def tiny_token_classifier(path: Path, architecture: str = "bert") -> Path:
    """A *ForTokenClassification over LABELS."""
    import transformers

    labels = dict(enumerate(LABELS))
    _save(
        path,
        transformers.AutoModelForTokenClassification,
        architecture,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    return path


def _save(path: Path, auto_class: Any, architecture: str, *, positions: int = POSITIONS, **extra: Any) -> None:
    """Random weights, large enough that attention and positions show in the result."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    tokenizer = _tokenizer(architecture)
    # Heads of 16, the smallest size that the native attention kernel has.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    special = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, f"{name}_token"))
        for name in ("pad", "cls", "sep", "bos", "eos")
        if getattr(tokenizer, f"{name}_token")
    }
    fields = {"max_position_embeddings": positions, "initializer_range": 0.3, "vocab_size": len(tokenizer), **special}
    given = sizes | families.CONFIGS.get(architecture, {}) | _SIZES.get(architecture, {})
    config = transformers.AutoConfig.for_model(architecture, **(fields | given | extra))
    torch.manual_seed(0)
    model = auto_class.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero after initialisation: a bias that is forgotten would not show
                parameter.normal_(0, 0.1)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    unused = special["pad_token_id"] + 1 if architecture in POSITIONS_AFTER_PADDING else 0
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", positions) - unused
    tokenizer.save_pretrained(path)


@functools.cache
def _tokenizer(architecture: str) -> Any:
    """WordPiece, byte-level BPE or Unigram, as the real checkpoints of the architecture have."""
    from transformers import PreTrainedTokenizerFast

    if made := families.tokenizer(architecture):
        return made
    if architecture in ("roberta", "modernbert"):
        tokenizer, special = Tokenizer(models.BPE()), ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif architecture in ("xlm-roberta", "camembert"):
        tokenizer, special = Tokenizer(models.Unigram()), ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
        tokenizer, trainer = families.word_pieces(special, "[UNK]"), None
        tokenizer.decoder = decoders.WordPiece()
    if trainer is not None:
        tokenizer.train_from_iterator(itertools.islice(docstrings(), 300), trainer)
    begin, pad, end, unknown, mask = special
    pair = f"{begin} $A {end} {end} $B {end}" if begin == "<s>" else f"{begin} $A {end} $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=pair,
        special_tokens=[(begin, tokenizer.token_to_id(begin)), (end, tokenizer.token_to_id(end))],
    )
    types = ["token_type_ids"] if architecture in ("bert", "electra", "albert", "nomic_bert") else []
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=begin,
        pad_token=pad,
        sep_token=end,
        unk_token=unknown,
        mask_token=mask,
        model_input_names=["input_ids", *types, "attention_mask"],
    )


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
