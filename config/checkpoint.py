"""What a checkpoint's own files say about turning a text into a result, settled once into a Recipe.

Reads JSON only (no torch) and follows sentence-transformers 6.2 in what the files mean. Where a file asks for
something Lading does not do, the model is refused: a result that is nearly right is worse than none.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .content import check_safe, content_hash, integer_at, read_json, text_at
from .errors import ModelError, nearest
from .hub import Checkpoint, locate, saved_prompts
from .modules import Module, read_modules, read_pooling
from .recipe import Recipe

__all__ = ["POSITIONS_AFTER_PADDING", "Checkpoint", "locate", "resolve"]

_SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
# Names of the settings file of a Transformer module, newest first, as releases of sentence-transformers wrote them.
_TRANSFORMER_CONFIGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Keys of that file that Lading reads, or that change no number. Any other one, unless empty, is refused.
_TRANSFORMER_KEYS = {
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}
# Position ids of these start at pad_token_id + 1, so the first rows of the position table go unused.
# fmt: off
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})
# fmt: on
_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid"}
_HEADS = {"score": "ForSequenceClassification", "extract": "ForTokenClassification"}
_VERB_OF_HEAD = {head: verb for verb, head in _HEADS.items()}


def resolve(
    checkpoint: Checkpoint,
    *,
    task: str,
    max_tokens: int = 0,
    precision: str = "float32",
    dims: int = 0,
    vector_type: str = "float32",
    prompt: str = "document",
    prompt_text: str = "",
    activation: str = "",
    long_text: str = "truncate",
    chunk_tokens: int = 0,
    chunk_overlap: int = 0,
) -> Recipe:
    """The recipe of `task` (encode, score, extract) with this checkpoint; the other arguments are a StepSpec's and PolicySpec's.

    Raises ModelError: unsafe or incomplete files, a model of another kind, or a wish that the checkpoint cannot fulfil.
    """
    folder = checkpoint.folder
    check_safe(folder)
    config = read_json(folder / "config.json")
    modules = read_modules(folder)
    _check_kind(folder, config, modules, task)
    transformer = _transformer_config(folder)
    limit = _max_tokens(folder, config, transformer, max_tokens)
    if chunk_tokens > limit:
        raise ModelError(f"chunk_tokens {chunk_tokens} is above the {limit} tokens that {checkpoint.name} takes")
    if long_text == "chunk" and chunk_overlap > (chunk_tokens or limit) // 2:
        raise ModelError(f"chunk_overlap {chunk_overlap} is more than half of a chunk's {chunk_tokens or limit} tokens")
    recipe = Recipe(
        task=task,
        content=content_hash(folder, [module.path for module in modules if module.path]),
        architecture=text_at(config, "model_type", folder / "config.json"),
        max_tokens=limit,
        lower_case=bool(transformer.get("do_lower_case")),
        precision=precision,
        long_text=long_text,
        chunk_tokens=0 if chunk_tokens == limit else chunk_tokens,
        chunk_overlap=chunk_overlap,
    )
    if task == "score":
        _check_one_label(folder, config)
        return dataclasses.replace(recipe, activation=activation or _activation(folder, config))
    if task == "extract":
        return dataclasses.replace(recipe, labels=_labels(folder, config), aggregation="simple")
    pooling, include_prompt, own_dims = read_pooling(folder, config, modules)
    if dims > own_dims:
        raise ModelError(f"dims {dims} is above the {own_dims} dimensions of {checkpoint.name}")
    if vector_type == "binary" and (dims or own_dims) % 8:
        raise ModelError(
            f"binary packs 8 dimensions into a byte, and {dims or own_dims} is no multiple of 8: give --dims"
        )
    return dataclasses.replace(
        recipe,
        dims=dims or own_dims,
        pooling=pooling,
        include_prompt=include_prompt,
        modules=tuple(module.path for module in modules if module.kind == "Dense"),
        normalize=any(module.kind == "Normalize" for module in modules),
        prompt=prompt_text or _prompt(folder, prompt),
        vector_type=vector_type,
    )


def _check_kind(folder: Path, config: dict[str, Any], modules: list[Module], task: str) -> None:
    """Refuse a model whose head is for another verb, with the verb it is for."""
    path = folder / "config.json"
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    head = next((head for head in _VERB_OF_HEAD if architecture.endswith(head)), "")
    saved_as = read_json(folder / _SENTENCE_TRANSFORMERS).get("model_type")
    if task == "encode":
        pools = len(modules) > 1 and (folder / "modules.json").exists()
        if head and not pools:
            raise ModelError(f"{path}: {architecture} is a model for `{_VERB_OF_HEAD[head]}`, not `encode`")
        if saved_as not in (None, "SentenceTransformer"):
            raise ModelError(f"{folder / _SENTENCE_TRANSFORMERS}: a {saved_as} model; encode makes dense vectors only")
        if len(modules) < 2:
            raise ModelError(
                f"{folder / 'modules.json'}: has no Pooling, so the model gives vectors of tokens, not of texts"
            )
        return
    if head != _HEADS[task]:
        known = f"; it is a model for `{_VERB_OF_HEAD[head]}`" if head else ""
        raise ModelError(
            f"{path}: `{task}` needs a *{_HEADS[task]}, and this is {architecture or 'of no stated architecture'}{known}"
        )
    if len(modules) > 1 and (folder / "modules.json").exists():
        raise ModelError(
            f"{folder / 'modules.json'}: lists {', '.join(module.kind for module in modules)}: a model for `encode`"
        )
    if read_json(folder / _SENTENCE_TRANSFORMERS).get("default_prompt_name"):
        raise ModelError(f"{folder / _SENTENCE_TRANSFORMERS}: has a default prompt, which `{task}` does not apply")


def _transformer_config(folder: Path) -> dict[str, Any]:
    path = next(
        (folder / name for name in _TRANSFORMER_CONFIGS if (folder / name).is_file()), folder / _TRANSFORMER_CONFIGS[0]
    )
    found = read_json(path)
    unread = sorted(key for key, value in found.items() if key not in _TRANSFORMER_KEYS and value)
    if unread:
        raise ModelError(f"{path}: sets {', '.join(unread)}, which Lading does not apply, so its results would differ")
    method = (found.get("modality_config") or {}).get("text", {"method": "forward"})
    if not isinstance(method, dict) or method.get("method") != "forward":
        raise ModelError(f"{path}: modality_config: texts must go through the model's `forward`, found {method!r}")
    return found


def _max_tokens(folder: Path, config: dict[str, Any], transformer: dict[str, Any], wanted: int) -> int:
    """What the checkpoint says (its own max_seq_length, else the tokenizer's), never above its positions; or `wanted`.

    The saved figure may exceed the positions (514 for RoBERTa, whose first usable one is 2): the reference fails on
    such a text, here it is cut.
    """
    positions = integer_at(config, ("max_position_embeddings", "n_positions"), folder / "config.json")
    if positions is not None and positions < 1:  # XLNet writes -1: no table of positions
        positions = None
    if positions is not None and config.get("model_type") in POSITIONS_AFTER_PADDING:
        pad = integer_at(config, ("pad_token_id",), folder / "config.json")
        positions -= (1 if pad is None else pad) + 1
    own = integer_at(transformer, ("max_seq_length",), folder / _TRANSFORMER_CONFIGS[0])
    if own is None:
        own = integer_at(
            read_json(folder / "tokenizer_config.json"),
            ("model_max_length", "max_len"),
            folder / "tokenizer_config.json",
        )
    if wanted:
        if positions is not None and wanted > positions:
            raise ModelError(f"max_tokens {wanted} is above the {positions} positions of the model in {folder}")
        return wanted
    limits = [limit for limit in (own, positions) if limit is not None and limit < 10**9]  # 1e30 is "no limit"
    if not limits:
        raise ModelError(f"{folder}: no file says how many tokens the model takes; say it with --max-tokens")
    if min(limits) < 1:
        raise ModelError(f"{folder}: the model's files allow {min(limits)} tokens; say how many with --max-tokens")
    return min(limits)


def _prompt(folder: Path, name: str) -> str:
    """The text of a prompt: documents and queries have other names in some checkpoints, and fall back to its default."""
    if name == "none":
        return ""
    prompts = saved_prompts(folder)
    for candidate in {"document": ("document", "passage", "corpus")}.get(name, (name,)):
        if candidate in prompts:
            return prompts[candidate]
    if name not in ("document", "query"):
        hint = nearest(name, {*prompts, "document", "query", "none"})
        raise ModelError(f"{folder / _SENTENCE_TRANSFORMERS}: no prompt {name!r}{hint} (or give a text: prompt_text)")
    default = read_json(folder / _SENTENCE_TRANSFORMERS).get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelError(f"{folder / _SENTENCE_TRANSFORMERS}: default_prompt_name {default!r} is none of its prompts")
    return prompts[default] if default is not None else ""


def _activation(folder: Path, config: dict[str, Any]) -> str:
    """What the checkpoint wants done with the logit; sigmoid where it says nothing, as sentence-transformers does."""
    nested = config.get("sentence_transformers")
    named = [
        (_SENTENCE_TRANSFORMERS, read_json(folder / _SENTENCE_TRANSFORMERS).get("activation_fn")),
        ("config.json", nested.get("activation_fn") if isinstance(nested, dict) else None),
        ("config.json", config.get("sbert_ce_default_activation_function")),
    ]
    for name, path in named:
        if path is not None:
            kind = str(path).rpartition(".")[2]
            if not str(path).startswith("torch.nn.") or kind not in _ACTIVATIONS:
                raise ModelError(
                    f"{folder / name}: activation_fn {path} is neither Identity nor Sigmoid; choose one with --activation"
                )
            return _ACTIVATIONS[kind]
    return "sigmoid"


def _check_one_label(folder: Path, config: dict[str, Any]) -> None:
    """Unless config.json says otherwise, a transformers model has two labels."""
    named = config.get("id2label")
    count = integer_at(config, ("num_labels",), folder / "config.json")
    if count is None:
        count = len(named) if isinstance(named, dict) else 2
    if count != 1:
        raise ModelError(
            f"{folder / 'config.json'}: the model has {count} labels; a reranker has 1, and `score` stores one number"
        )


def _labels(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    found = config.get("id2label")
    if not isinstance(found, dict) or sorted(found) != sorted(map(str, range(len(found)))) or not found:
        raise ModelError(f"{folder / 'config.json'}: id2label must name every class, 0 and up")
    return tuple(str(found[str(number)]) for number in range(len(found)))
