"""Checkpoints that name code of their own for an architecture that transformers itself has by now: config.json in that class's words.

Their code is never run. A setting that the class of transformers does not have is refused, since the results would differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import ModelError, nearest

Config = dict[str, Any]

# Architectures whose published checkpoints name code that is not needed: as config.json has them, and as `native` calls them.
WITHOUT_CODE = frozenset({"new", "gte", "nomic_bert", "jina_embeddings_v3"})

# fmt: off
_SIZES = (
    "vocab_size", "type_vocab_size", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id", "id2label", "label2id",
    "num_labels", "classifier_dropout", "problem_type", "sentence_transformers", "sbert_ce_default_activation_function",
)
_BERT_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "max_position_embeddings",
)
# fmt: on


def native(config: Config, path: Path) -> Config:
    """`config` (of the file `path`) for transformers' own class; the same object where there is nothing to translate.

    Raises ModelError: the checkpoint asks for what that class does not have.
    """
    translate = _translation(config)
    return translate(config, path) if translate else config


def is_known(config: Config) -> bool:
    """Whether `native` can read it, so that code named by `auto_map` is not needed."""
    return _translation(config) is not None


def task_adapter(config: Config, prompt: str) -> str:
    """Which of the adapters that a checkpoint carries goes with a prompt's name, "" for none (jina-embeddings-v3 has five).

    Raises ModelError: a name that is neither one of them nor document, query or none.
    """
    adapters = config.get("lora_adaptations") or []
    wanted = {"document": "retrieval.passage", "query": "retrieval.query"}.get(prompt, prompt)
    if not adapters or wanted == "none":
        return ""
    if wanted not in adapters:
        raise ModelError(f"the checkpoint has no adapter for the prompt {prompt!r}{nearest(wanted, adapters)}")
    return wanted


def _translation(config: Config) -> Callable[[Config, Path], Config] | None:
    if "auto_map" not in config:
        return None
    kind = config.get("model_type", "")
    if kind == "xlm-roberta":  # of itself a plain one; its authors' code makes it another
        kind += f", {config.get('position_embedding_type')}"
    return _TRANSLATIONS.get(kind)


def _insist(config: Config, path: Path, wanted: Config) -> None:
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ModelError(
                f"{path}: {key} is {config[key]!r}, which only the checkpoint's own code can do, and Lading never runs that; "
                f"transformers' class of this kind has {value!r}"
            )


def _gte(config: Config, path: Path) -> Config:
    """model_type `new` of Alibaba-NLP/new-impl (gte-*-v1.5, gte-multilingual-*, arctic-embed-m-v2.0), as `gte`."""
    _insist(config, path, {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "pack_qkv": True})
    _insist(config, path, {"logn_attention_scale": False, "logn_attention_clip1": False})
    kept = {key: config[key] for key in (*_SIZES, *_BERT_SIZES) if key in config}
    theta, scaling = float(config.get("rope_theta", 10000.0)), config.get("rope_scaling")
    rope: Config = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        _insist(scaling, path, {"type": "ntk", "mixed_b": None})
        # Fixed NTK scaling (https://kexue.fm/archives/9706, equation 6): a larger base, and every frequency divided.
        width, factor = config["hidden_size"] // config["num_attention_heads"], float(scaling["factor"])
        rope = {"rope_type": "linear", "factor": factor ** (2 / width), "rope_theta": theta * factor}
    names = [str(name).replace("New", "Gte", 1) for name in config.get("architectures") or []]
    return kept | {"model_type": "gte", "architectures": names, "rope_parameters": rope}


def _nomic(config: Config, path: Path) -> Config:
    """GPT-2's words for sizes, as nomic-embed-text-v1 and v1.5 have them."""
    if "n_embd" not in config:  # already in the class's words
        return {key: value for key, value in config.items() if key != "auto_map"}
    if config.get("num_experts"):
        raise ModelError(f"{path}: a mixture of {config['num_experts']} experts; transformers' nomic_bert has none")
    plain = {
        "activation_function": "swiglu",
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "prenorm": False,
    }
    plain |= dict.fromkeys(
        ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "use_rms_norm", "parallel_block", "causal"), False
    )
    _insist(config, path, plain | {"rotary_emb_scale_base": None, "rotary_scaling_factor": None})
    # Beyond the trained positions its code turns them by the longest text of a batch.
    positions = min(config.get("n_positions", 2048), config.get("max_trained_positions", 2048))
    return {key: config[key] for key in _SIZES if key in config} | {
        "model_type": "nomic_bert",
        "architectures": config.get("architectures"),
        "hidden_size": config["n_embd"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "intermediate_size": config.get("n_inner") or 4 * config["n_embd"],
        "hidden_act": "silu",
        "layer_norm_eps": config.get("layer_norm_epsilon", 1e-12),
        "max_position_embeddings": positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000.0))},
    }


def _jina(config: Config, path: Path) -> Config:
    """jina-embeddings-v3 as first published (jinaai/xlm-roberta-flash-implementation), with its tasks' adapters."""
    _insist(config, path, {"use_reg_tokens": False})
    adapters = ("lora_adaptations", "lora_rank", "lora_alpha")
    kept = {key: config[key] for key in (*_SIZES, *_BERT_SIZES, *adapters) if key in config}
    rope = {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000.0))}
    return kept | {"model_type": "jina_embeddings_v3", "architectures": [], "rope_parameters": rope}


_TRANSLATIONS: dict[str, Callable[[Config, Path], Config]] = {
    "new": _gte,
    "nomic_bert": _nomic,
    "xlm-roberta, rotary": _jina,
}
