"""How many tokens of a text a model sees, and which end of a longer text is cut off: what the files say, in their order of force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .content import integer_at, read_json, read_json_value, text_at
from .errors import ModelError
from .origins import DEFAULT, OPTION
from .wishes import Opened, Wishes

SETTINGS = "sentence_bert_config.json"  # of a Transformer module, as sentence-transformers 6 names it
UNLIMITED = 1 << 20  # tokens of a text: who states as much or more, as the 1e30 of some tokenizers, states no limit
# Position ids of these start at pad_token_id + 1, so the first rows of the position table go unused.
# fmt: off
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})
# fmt: on


def positions_of(folder: Path, config: dict[str, Any]) -> int | None:
    """Tokens that the model has positions for; None: any number."""
    positions = integer_at(config, ("max_position_embeddings", "n_positions"), folder / "config.json")
    if positions is not None and positions < 1:  # XLNet writes -1: no table of positions
        positions = None
    if positions is not None and config.get("model_type") in POSITIONS_AFTER_PADDING:
        pad = integer_at(config, ("pad_token_id",), folder / "config.json")
        if pad is None and "pad_token_id" in config:
            raise ModelError(
                f"{folder / 'config.json'}: pad_token_id is null, and positions of this kind of model begin after it; write "
                "the number of the tokenizer's pad token there"
            )
        positions -= (1 if pad is None else pad) + 1
    return positions


def max_tokens_of(opened: Opened, home: Path, saved_in: str, wanted: int) -> int:
    """What the checkpoint says (its own max_seq_length, else the tokenizer's), else the catalogue, never above its positions; or `wanted`.

    The saved figure may exceed the positions (514 for RoBERTa, whose first usable one is 2): the reference fails on
    such a text, here it is cut.
    """
    folder, positions, known = home, opened.positions, opened.known
    if known is not None and positions is not None and known.max_tokens > positions:
        known.disagree("max_tokens", f"{folder / 'config.json'} has {positions} positions")
    name = saved_in
    own = integer_at(opened.transformer, ("max_seq_length",), folder / name)
    if own is None:
        name = "tokenizer_config.json"
        own = integer_at(read_json(folder / name), ("model_max_length", "max_len"), folder / name)
    if wanted:
        if positions is not None and wanted > positions:
            raise ModelError(f"max_tokens {wanted} is above the {positions} positions of the model in {folder}")
        opened.note("max_tokens", OPTION)
        return wanted
    if own is not None and own >= UNLIMITED:
        own = None
    if own is None and known is not None and known.max_tokens:
        own, name = known.max_tokens, known.origin("max_tokens")
    limits = [(limit, origin) for limit, origin in ((own, name), (positions, "config.json")) if limit is not None]
    if not limits:
        raise ModelError(f"{folder}: no file says how many tokens the model takes; say it with --max-tokens")
    limit, origin = min(limits, key=lambda one: one[0])
    if limit < 1:
        raise ModelError(f"{folder}: the model's files allow {limit} tokens; say how many with --max-tokens")
    opened.note("max_tokens", origin)
    return limit


def truncation_side(opened: Opened, home: Path, wish: Wishes) -> str:
    """Which end of a long text is cut off; right, which is no part of a recipe, where none is."""
    if wish.truncation_side == "left" and wish.long_text != "truncate":
        raise ModelError(f"truncation_side: long_text {wish.long_text} cuts nothing off, only truncate does")
    side = wish.truncation_side
    if not side:
        side, said_by = _saved_side(home, is_static=opened.modules[0].kind == "StaticEmbedding")
        opened.note("truncation_side", said_by)
    if side not in ("right", "left"):
        raise ModelError(f"truncation_side {side!r} of {opened.checkpoint.name} is neither right nor left")
    return side if wish.long_text == "truncate" else "right"


def _saved_side(home: Path, *, is_static: bool) -> tuple[str, str]:
    """The side that the tokenizer's files name, and which of them: transformers reads both in this order, StaticEmbedding the last alone."""
    path = home / "tokenizer_config.json"
    found = {} if is_static else read_json(path)
    if "truncation_side" in found:
        return text_at(found, "truncation_side", path), path.name
    path = home / "tokenizer.json"
    truncation = _truncation(path)
    return text_at({"direction": "right"} | truncation, "direction", path).lower(), path.name if truncation else DEFAULT


def _truncation(path: Path) -> dict[str, Any]:
    """What a tokenizer.json says of long texts, {} if nothing."""
    found = read_json_value(path, "truncation")
    if not isinstance(found, dict | None):
        raise ModelError(f"{path}: truncation: expected a JSON object, found {found!r}")
    return found or {}


def table_tokens(opened: Opened, home: Path, wanted: int) -> int:
    """A table has no limit of its own but what its tokenizer is set to; each kind is cut by another of its files."""
    if opened.modules[0].kind == "StaticEmbedding":
        path, key = home / "tokenizer.json", "max_length"
        found = _truncation(path)
    else:
        path, key = home / "tokenizer_config.json", "model_max_length"
        found = read_json(path)
    own = integer_at(found, (key,), path) or UNLIMITED
    opened.note("max_tokens", OPTION if wanted else path.name if own < UNLIMITED else DEFAULT)
    return wanted or min(own, UNLIMITED)
