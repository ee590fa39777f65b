"""Small configurations and real fast tokenizers of text backbones, as their published checkpoints have them.

`CONFIGS` says what a family's config needs beside tests.models' sizes; `tokenizer` trains one of the family's kind on docstrings;
`publish` rewrites a folder of transformers' own class as the authors' code wrote it.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from benchmarks.corpus import docstrings

VOCABULARY = 500
_GROUPED = {"num_key_value_heads": 1, "head_dim": 16}
_WINDOWS = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA = _GROUPED | {"query_pre_attn_scalar": 16}
_T5 = {"d_model": 32, "d_kv": 16, "num_heads": 2, "d_ff": 64, "num_layers": 2, "initializer_factor": 2.0}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
_DISTANCES = {
    "position_buckets": 32,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}
# model_type -> what its config needs, and its kind of tokenizer.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "t5": _T5,
    "mt5": _T5 | {"feed_forward_proj": "gated-gelu"},
    "umt5": _T5 | {"feed_forward_proj": "gated-gelu"},
    "deberta-v2": _DEBERTA | _DISTANCES,
    "gemma2": _GEMMA | _WINDOWS,
    "gemma3_text": _GEMMA | _WINDOWS,
    "mistral": _GROUPED | {"sliding_window": 24},
    "granite": _GROUPED | {"attention_multiplier": 0.25},
    "eurobert": _GROUPED | {"num_key_value_heads": 2},
    **dict.fromkeys(("qwen2", "qwen3", "llama", "gemma", "olmo2", "smollm3", "phi3"), _GROUPED),
}
# How the tokens of a text begin and end (of a pair: the second text too), the names of the special tokens, and the kind.
_UNIGRAM = ("unigram", "<s> $A </s>", {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"})
_WORDS = ("wordpiece", "<s> $A </s>", _UNIGRAM[2])
_BRACKETS = {"cls": "[CLS]", "pad": "[PAD]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
_QWEN = ("qwen", "$A <|endoftext|>", {"pad": "<|endoftext|>", "eos": "<|endoftext|>"})
_LLAMA = ("bpe", "<|begin|> $A <|end|>", {"bos": "<|begin|>", "eos": "<|end|>", "pad": "<|pad|>"})
_GEMMA_WORDS = ("unigram", "<bos> $A <eos>", {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"})
_T5_WORDS = ("unigram", "$A </s>", {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"})
_TOKENIZERS = {
    "mpnet": _WORDS,
    "deberta-v2": ("unigram", "[CLS] $A [SEP]", _BRACKETS),
    "albert": ("unigram", "[CLS] $A [SEP]", _BRACKETS),
    "eurobert": ("bpe", "<s> $A </s>", _UNIGRAM[2]),
    **dict.fromkeys(("gte", "jina_embeddings_v3", "xlm-roberta-xl"), _UNIGRAM),
    **dict.fromkeys(("roberta-prelayernorm", "data2vec-text"), ("bpe", "<s> $A </s>", _UNIGRAM[2])),
    **dict.fromkeys(("qwen2", "qwen3", "phi3", "olmo2", "gpt2"), _QWEN),
    **dict.fromkeys(("llama", "mistral", "smollm3", "granite"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GEMMA_WORDS),
    **dict.fromkeys(("t5", "mt5", "umt5"), _T5_WORDS),
}


@functools.cache
def tokenizer(architecture: str) -> Any:
    """The family's kind of tokenizer, None for those that tests.models makes."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    if architecture not in _TOKENIZERS:
        return None
    kind, single, names = _TOKENIZERS[architecture]
    special = list(dict.fromkeys(names.values()))
    options: dict[str, Any] = {"vocab_size": VOCABULARY, "special_tokens": special, "show_progress": False}
    if kind in ("bpe", "qwen"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        if kind == "qwen":  # transformers puts this in place of what tokenizer.json says
            made.normalizer = normalizers.NFC()
            split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
            last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            made.pre_tokenizer = pre_tokenizers.Sequence([split, last])
        trainer: Any = trainers.BpeTrainer(**options, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer, made.decoder = (
            normalizers.NFKC(),
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
        )
        trainer = trainers.UnigramTrainer(**options, unk_token=names["unk"])
    else:
        made, trainer = word_pieces(special, names["unk"]), None
    if trainer is not None:
        made.train_from_iterator(itertools.islice(docstrings(), 300), trainer)
    used = [(token, made.token_to_id(token)) for token in special if token in single]
    pair = (
        single + " " + single.partition(" ")[2].replace("$A", "$B") if "cls" in names else f"{single} $B {used[-1][0]}"
    )
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    named = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named, model_input_names=["input_ids", "attention_mask"])


def word_pieces(special: list[str], unknown: str) -> Tokenizer:
    """BERT's kind of tokenizer, the same in every process, which the library's trainer does not promise: the commonest words, the
    commonest ends of the others, and every letter of ASCII."""
    made = Tokenizer(models.WordPiece(unk_token=unknown))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in itertools.islice(docstrings(), 300):
        words.update(word for word, _ in made.pre_tokenizer.pre_tokenize_str(made.normalizer.normalize_str(text)))
    ends: Counter[str] = Counter()
    for word, count in words.items():
        ends.update({f"##{word[-size:]}": count for size in (2, 3, 4) if len(word) > size})
    letters = sorted(letter for letter in set("".join(words)) if letter.isascii())
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    room = VOCABULARY - len(pieces)
    pieces += _commonest(words, pieces, room * 2 // 3)
    pieces += _commonest(ends, pieces, VOCABULARY - len(pieces))
    made.model = models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token=unknown)
    return made


def _commonest(counts: Counter[str], known: list[str], most: int) -> list[str]:
    left = [piece for piece in counts if piece not in set(known)]
    return sorted(left, key=lambda piece: (-counts[piece], piece))[:most]


# -- published layouts: what the authors' own code calls what transformers' class has

_NEW_CONFIG = {
    "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    "model_type": "new",
    "pack_qkv": True,
}
_NEW_CONFIG |= {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "rope_theta": 20000.0}
_NEW_CONFIG |= {
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "rope_scaling": {"type": "ntk", "factor": 2.0},
}
_NOMIC_CONFIG = {
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling.NomicBertModel"},
    "model_type": "nomic_bert",
}
_NOMIC_CONFIG |= {
    "activation_function": "swiglu",
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "qkv_proj_bias": False,
}
_NOMIC_CONFIG |= {"num_experts": 0, "max_trained_positions": 2048, "rotary_scaling_factor": None, "prenorm": False}
_NOMIC_NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
_NOMIC_NAMES |= {
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
    "max_position_embeddings": "n_positions",
}


def publish(folder: Path, prefix: str = "") -> Path:
    """Rewrite the `gte` or `nomic_bert` in `folder` as its authors' code has it (`prefix` of weights' names); returns the folder.

    transformers itself saves the weights under their published names.
    """
    from safetensors.torch import load_file, save_file

    path, stored = folder / "config.json", folder / "model.safetensors"
    config, weights = json.loads(path.read_text()), load_file(stored)
    assert any("qkv" in name.lower() for name in weights)
    named = {name: name if name.startswith("classifier") else prefix + name.removeprefix("gte.") for name in weights}
    save_file({named[name]: tensor for name, tensor in weights.items()}, stored, {"format": "pt"})
    rope = config.pop("rope_parameters")
    if config["model_type"] == "gte":
        assert rope["rope_type"] == "linear", "the published models have NTK scaling"
        config["architectures"] = [name.replace("Gte", "New") for name in config["architectures"]]
        config |= _NEW_CONFIG
    else:
        config = {_NOMIC_NAMES.get(key, key): value for key, value in config.items()} | _NOMIC_CONFIG
        del config["hidden_act"]
    path.write_text(json.dumps(config))
    return folder


TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
_JINA_CODE = "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"


def publish_tasks(folder: Path, native: Path, task: str) -> Path:
    """Give the `jina_embeddings_v3` in `folder` an adapter for each task, as first published; `native` gets that of `task` merged in."""
    import torch
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(2)
    weights, made, plain = load_file(folder / "model.safetensors"), {}, {}
    for name, weight in weights.items():
        layer, _, kind = name.rpartition(".")
        key = f"roberta.{layer}.parametrizations.weight"
        if kind != "weight" or "norm" in layer.lower() or "emb_ln" in layer:
            made[f"roberta.{name}"] = plain[name] = weight
            continue
        rows, columns = weight.shape
        first, second = ((len(TASKS), rows, 4), (len(TASKS), 4, columns))
        one, other = torch.randn(first, generator=draw) * 0.2, torch.randn(second, generator=draw) * 0.2
        linear = "embeddings" not in layer
        made |= {f"{key}.original": weight, f"{key}.0.lora_B": one if linear else other}
        made[f"{key}.0.lora_A"] = other if linear else one
        number = TASKS.index(task)
        plain[name] = weight + one[number] @ other[number] / 4
    save_file(plain, native / "model.safetensors", {"format": "pt"})
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "auto_map": {"AutoModel": _JINA_CODE}}
    config |= {"position_embedding_type": "rotary", "rotary_emb_base": config.pop("rope_parameters")["rope_theta"]}
    config |= {"lora_adaptations": TASKS, "lora_rank": 4, "lora_alpha": 1, "load_trained_adapters": True}
    path.write_text(json.dumps(config))
    path = folder / "modules.json"
    listed = json.loads(path.read_text())
    listed[0] |= {"type": "custom_st.Transformer", "kwargs": ["task"]}
    path.write_text(json.dumps(listed))
    return folder
