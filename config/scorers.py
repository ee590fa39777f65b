"""The recipe of `score`: a classifier with one label, or a language model asked through a template; and what is done with the logit."""

from __future__ import annotations

import dataclasses
from typing import Any

from .content import integer_at, read_json
from .errors import ModelError
from .hub import SENTENCE_TRANSFORMERS, default_prompt, saved_prompts
from .kinds import LANGUAGE_MODEL, check_head
from .limits import SETTINGS
from .modules import Module
from .origins import DEFAULT, OPTION
from .recipe import Recipe
from .templates import Template, chat_template, named_template
from .weights import token_rows
from .wishes import Opened, Wishes

_ACTIVATIONS = {"Identity": "identity", "Sigmoid": "sigmoid"}


def settle(recipe: Recipe, opened: Opened, wish: Wishes) -> Recipe:
    """`recipe` with what `score` adds. Raises ModelError: a model of another kind, one of several labels, a wish that it cannot fulfil."""
    _check_half_precision(opened, wish)
    if wish.activation:
        opened.note("activation", OPTION)
    head = next((module for module in opened.modules if module.kind == "LogitScore"), None)
    if head is None and not opened.architecture.endswith(LANGUAGE_MODEL):
        check_head(opened, "score")
        _check_one_label(opened)
        _refuse(opened, wish, "template", "instruction")
        if opened.transformer.get("processing_kwargs"):
            raise ModelError(f"{opened.folder / SETTINGS}: sets processing_kwargs, which Lading does not apply here")
        return dataclasses.replace(
            recipe,
            prompt=default_prompt(opened.folder, saved_prompts(opened.folder)),
            activation=wish.activation or _activation(opened),
        )
    if opened.is_pipeline and head is None:
        kinds = ", ".join(module.kind for module in opened.modules)
        raise ModelError(f"{opened.folder / 'modules.json'}: lists {kinds}: a model for `encode`")
    if head is None or wish.template:
        found, prompt = named_template(opened, wish), ""
    else:
        found, prompt = _own_template(opened, wish, head)
    if found.pieces and wish.truncation_side == "left":
        raise ModelError(
            f"{opened.checkpoint.name}: of a pair inside a template the document's end is cut: leave truncation_side out"
        )
    return dataclasses.replace(
        recipe,
        truncation_side="right" if found.pieces else recipe.truncation_side,
        template=found.pieces,
        answers=found.answers,
        prompt=prompt,
        activation=wish.activation or found.activation or _activation(opened),
    )


def _own_template(opened: Opened, wish: Wishes, head: Module) -> tuple[Template, str]:
    """As sentence-transformers 6 saves a CrossEncoder around a language model: LogitScore after it, pairs as chat messages or as they are."""
    path = opened.folder / head.path / "config.json"
    found = read_json(path)
    ids = [integer_at(found, (key,), path) for key in ("true_token_id", "false_token_id")]
    if ids[0] is None or found.get("module_input_name", "causal_logits") != "causal_logits":
        raise ModelError(f"{path}: a LogitScore needs true_token_id, and reads causal_logits")
    answers = tuple(id for id in ids if id is not None)
    if max(answers) >= (token_rows(opened.folder) or 0) or min(answers) < 0:
        raise ModelError(f"{path}: token {max(answers)} is none of the model's vocabulary")
    path, settings = opened.folder / SETTINGS, opened.transformer
    message = (settings.get("modality_config") or {}).get("message")
    if not isinstance(message, dict):
        _refuse(opened, wish, "instruction")
        if settings.get("processing_kwargs"):
            raise ModelError(f"{path}: sets processing_kwargs, which Lading applies to chat messages only")
        return Template((), answers), default_prompt(opened.folder, saved_prompts(opened.folder))
    options = settings.get("processing_kwargs") or {}
    if set(options) - {"chat_template"} or {"restore_suffix", "truncation", "max_length"} & set(
        options.get("chat_template") or {}
    ):
        raise ModelError(f"{path}: processing_kwargs: Lading applies options of the chat template only")
    system = wish.instruction or default_prompt(opened.folder, saved_prompts(opened.folder))
    own = chat_template(opened, str(message.get("format")), system, options.get("chat_template") or {})
    return dataclasses.replace(own, answers=answers), ""


def _refuse(opened: Opened, wish: Wishes, *names: str) -> None:
    for name in names:
        if getattr(wish, name):
            raise ModelError(
                f"{opened.folder}: {opened.architecture} takes no {name}: it scores the pair as it is (leave {name} out)"
            )


def _check_half_precision(opened: Opened, wish: Wishes) -> None:
    kept = read_json(opened.folder / SENTENCE_TRANSFORMERS).get("keep_in_fp32_modules")
    if kept and wish.precision != "float32":
        raise ModelError(
            f"{opened.folder / SENTENCE_TRANSFORMERS}: keep_in_fp32_modules asks for single layers in float32: compute all in it"
        )


def _activation(opened: Opened) -> str:
    """What the checkpoint wants done with the logit, else the catalogue; sigmoid where neither says, as sentence-transformers does."""
    folder, config = opened.folder, opened.config
    nested: Any = config.get("sentence_transformers")
    named = [
        (SENTENCE_TRANSFORMERS, read_json(folder / SENTENCE_TRANSFORMERS).get("activation_fn")),
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
            opened.note("activation", name)
            return _ACTIVATIONS[kind]
    known = opened.known
    opened.note("activation", known.origin("activation") if known and known.activation else DEFAULT)
    return known.activation if known and known.activation else "sigmoid"


def _check_one_label(opened: Opened) -> None:
    """Unless config.json says otherwise, a transformers model has two labels."""
    path, named = opened.folder / "config.json", opened.config.get("id2label")
    count = integer_at(opened.config, ("num_labels",), path)
    if count is None:
        count = len(named) if isinstance(named, dict) else 2
    if count != 1:
        names = f" ({', '.join(map(str, named.values()))[:80]})" if isinstance(named, dict) and named else ""
        raise ModelError(
            f"{path}: the model has {count} labels{names}; a reranker has 1, and `score` stores one number"
        )
