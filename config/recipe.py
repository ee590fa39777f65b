"""The recipe: everything numerically relevant about one step, resolved once, hashed, stored with the output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from .errors import SpecError

RECIPE_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What turns one text (or pair of texts) into one result. Equal recipes give equal rows on every path.

    `content` is the hash of the checkpoint's files, not its path; kernel and batch choices are not part of a
    recipe (they go to the receipts). A field that holds its default is left out of the hash, so that a new
    field does not change the hashes of old recipes.
    """

    task: str  # encode | score | extract
    content: str  # sha256 over the checkpoint files that matter
    architecture: str  # `model_type` of config.json
    max_tokens: int  # per text, special tokens included
    dims: int = 0  # encode: length of the stored vector, before binary packing
    pooling: str = ""  # encode: mean | cls | max | last | mean_sqrt_len | weighted_mean
    modules: tuple[str, ...] = ()  # folders of Dense modules applied after pooling, in order
    normalize: bool = False  # encode: L2, after slicing to `dims`
    prompt: str = ""  # put before every text; of a pair, before the first
    task_adapter: str = ""  # encode: which of the adapters inside the checkpoint its weights are merged with
    include_prompt: bool = True  # encode: whether the prompt's tokens are pooled
    lower_case: bool = False  # sentence_bert_config.json's do_lower_case, applied before the tokenizer
    adapter: str = ""  # sha256 over the files of the LoRA adapter on the checkpoint's layers
    precision: str = "float32"  # what the model computes in: float32 | bfloat16 | float16 | int8
    vector_type: str = "float32"  # encode: what is stored: float32 | float16 | int8 | binary
    long_text: str = "truncate"  # truncate | chunk | reject
    truncation_side: str = "right"  # truncate: which end of a long text is cut off, right | left
    chunk_tokens: int = 0  # chunk: tokens per chunk, special tokens included; 0 is max_tokens
    chunk_overlap: int = 0  # chunk: tokens shared by neighbours
    activation: str = ""  # score: identity | sigmoid
    template: tuple[
        str, ...
    ] = ()  # score by a language model: the text around {query} and {document}, in pieces tokenised alone
    answers: tuple[
        int, ...
    ] = ()  # score by a language model: the token whose logit counts for the document, the one against
    labels: tuple[str, ...] = ()  # extract: the label of each class id
    aggregation: str = ""  # extract: simple (runs of one label become one entity)
    outputs: tuple[str, ...] = ("dense",)  # encode: dense | sparse | multi_vector, in this order
    part: str = ""  # encode: sub-folder with the model's files, where a Router chose one
    sparse: str = ""  # sparse: splade-max | splade-sum | lexical (a weight per token) | idf (a weight per token id)
    log1p: int = 1  # sparse, splade: how often log(1 + x) is applied
    drop_tokens: tuple[str, ...] = ()  # sparse: tokens that get no weight
    top_k: int = 0  # sparse: the largest weights only; 0 is all
    threshold: float = 0.0  # sparse: weights above this only
    token_modules: tuple[str, ...] = ()  # multi_vector: Dense folders or safetensors files applied to every token
    token_dims: int = 0  # multi_vector: length of a token's vector
    token_normalize: bool = False  # multi_vector: L2, after slicing to `token_dims`
    drop_first: bool = False  # multi_vector: whether the first token has no vector
    skip_tokens: tuple[str, ...] = ()  # multi_vector: tokens without a vector
    markers: tuple[str, ...] = ()  # multi_vector: prompts that are one token each
    expand_to: int = 0  # multi_vector: shorter texts are filled up to so many tokens, each with a vector
    expand_with: str = ""  # multi_vector: the token they are filled with
    expand_attended: bool = False  # multi_vector: whether other tokens see those
    token_pooling: int = 1  # multi_vector: tokens are joined into one vector for so many
    version: int = RECIPE_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Fields that differ from their default, plus the version: what is hashed and stored."""
        kept: dict[str, Any] = {"version": self.version}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                kept[field.name] = list(value) if isinstance(value, tuple) else value
        return kept

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`. Raises SpecError for a version or a field this release does not know."""
        if stored.get("version") != RECIPE_VERSION:
            raise SpecError(
                f"recipe version {stored.get('version')!r} is not {RECIPE_VERSION}, the one this release reads"
            )
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(stored.keys() - names):
            raise SpecError(
                f"recipe has {', '.join(unknown)}, which this release does not know: read it with the one that wrote it"
            )
        fields: dict[str, Any] = {}
        for name, value in stored.items():
            fields[name] = tuple(value) if isinstance(value, list) else value
        return cls(**fields)

    @property
    def base(self) -> Recipe:
        """The same without a LoRA adapter: recipes with an equal base can share one loaded model."""
        return dataclasses.replace(self, adapter="")

    @property
    def hash(self) -> str:
        """Sixteen hex digits that name this recipe in outputs and receipts."""
        return _digest(self.to_dict())

    @property
    def weights(self) -> str:
        """Sixteen hex digits that name what is loaded for it: recipes that differ in their prompt, say, share one loaded model."""
        return _digest({name: getattr(self, name) for name in _LOADED})


# Fields on which it depends what is in a device's memory, not only what is done with it.
_LOADED = (
    "task", "content", "architecture", "precision", "part", "task_adapter", "adapter", "modules", "token_modules", "sparse", "outputs",
    "drop_tokens", "skip_tokens", "answers", "labels",
)  # fmt: skip


def _digest(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
