"""A transformers model that runs packed: loads it, checks that packing changes nothing, and runs batches.

The attention kernel comes from attention.py, faster CPU layers from linear.py. Knows neither texts nor results.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ..config.checkpoint import POSITIONS_AFTER_PADDING
from ..config.errors import ModelError
from ..config.events import tell
from ..config.recipe import Recipe
from . import attention, bucketed, int8, linear, lora
from .attention import IMPLEMENTATION, Segments, attending, segments_in_flight
from .contract import Prepared
from .devices import streams
from .loading import load_model, quiet, uses_types
from .ragged import Ragged, concatenate

log = logging.getLogger(__name__)

# What a precision computes in; of int8, all but the products of linear layers.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}

# How far packed results may lie from the model's own, relative to their size. In half precision the order of
# the sums alone moves them by some units in the last place per layer.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
WIDEST_TRIED = 512  # tokens of a window that the check at load looks beyond; wider ones would make it slow
INT8_TOLERANCE = 0.35  # of made-up tokens; of sensible texts see docs/models.md


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Items on the device, longest first, end to end."""

    tokens: Tensor  # int64 (1, tokens)
    positions: Tensor  # int64 (1, tokens), from 0 in every item
    types: Tensor | None  # int64 (1, tokens)
    segments: Segments
    order: np.ndarray  # int64 (items,): place in the request of each packed item


def gather(parts: list[tuple[Prepared, np.ndarray]], device: torch.device) -> Batch:
    """The chosen items of each part as one packed batch, sorted by length so that equal lengths are neighbours."""
    ragged = concatenate([prepared.features["ragged"].take(items) for prepared, items in parts])
    order = np.argsort(-ragged.lengths, kind="stable")
    return to_device(ragged.take(order), order, device)


def to_device(ragged: Ragged, order: np.ndarray, device: torch.device) -> Batch:
    """A packed batch of items that already are in the order wanted."""
    positions = np.arange(len(ragged.tokens)) - np.repeat(ragged.offsets[:-1], ragged.lengths)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64))[None].to(device, non_blocking=True)

    types = None if ragged.types is None else put(ragged.types)
    segments = Segments.of(torch.from_numpy(ragged.lengths), device)
    return Batch(put(ragged.tokens), put(positions), types, segments, order)


class PackedModel:
    """One loaded checkpoint, ready to run packed batches."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        auto_class: Any,
        *,
        device: str = "auto",
        threads: int = 0,
        adjust: Callable[[transformers.PreTrainedModel], None] | None = None,
    ) -> None:
        """`auto_class`: the transformers AutoModel class that has the head wanted. `adjust`: changes the model before anything is
        run. `threads`: CPU only, 0 for what OMP_NUM_THREADS says, else all cores; each runs a batch of its own, so torch is left
        one in each.

        Raises ModelError if the checkpoint is incomplete, unsafe, or cannot be run packed.
        """
        self.device = device_of(device)
        dtype = DTYPES[recipe.precision]
        if recipe.precision == "int8":
            int8.check(self.device)
        self.streams = 1
        if self.device.type == "cpu":
            # Two threads in one batch wait for each other at the end of every layer: two batches side by side were 12 %
            # faster (MiniLM, Zen 4), and on a core that others use too, one batch is late and not both.
            self.streams = streams("cpu", threads)
            torch.set_num_threads(1)
        self.lora: lora.Parts | None = None
        self.folder = folder
        self.model = load_model(folder, auto_class, dtype, recipe.task_adapter)
        if adjust is not None:
            adjust(self.model)
        self.model.to(device=self.device)  # pyright: ignore[reportCallIssue]
        config = self.model.config
        self.model_type: str = config.model_type
        if kind := _rope_that_grows(config):
            raise ModelError(
                f"a model of type {self.model_type!r} with rope_type {kind!r} turns positions by the longest text that it has "
                "seen, so a vector would depend on its neighbours; Lading does not run it"
            )
        padded = self.model_type in POSITIONS_AFTER_PADDING
        self.first_position = int(config.pad_token_id) + 1 if padded else 0
        self.uses_types = uses_types(config)
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self._scores_last_token = _scores_last_token(self.model)
        _first_rows_for_heads(self.model)
        linears = lora.layers_of(self.model)
        products = self._become_packed(dtype, recipe.precision == "int8")
        self._linears = lora.now(linears)
        self.kernel = f"{self.backend.name}+{products}/{self.device.type}/{recipe.precision}"

    def forward(self, batch: Batch, **more: Tensor) -> Any:
        """transformers' output for a packed batch: hidden states and token logits have shape (1, tokens, width)."""
        inputs: dict[str, Tensor] = {"input_ids": batch.tokens, **more}
        if self._takes_positions:
            inputs["position_ids"] = batch.positions + self.first_position
        if self.uses_types:
            inputs["token_type_ids"] = torch.zeros_like(batch.tokens) if batch.types is None else batch.types
        with torch.inference_mode(), attending(batch.segments, self.backend), lora.adapting(self.lora):
            if not self._scores_last_token:
                return self.model(**inputs)
            model: Any = self.model
            hidden = getattr(model, model.base_model_prefix)(**inputs).last_hidden_state[0]
            return SequenceClassifierOutput(logits=model.score(hidden[batch.segments.edges[1:].long() - 1]))

    def adapted(self, folder: Path) -> PackedModel:
        """The same loaded model with the LoRA adapter in `folder`, beside this one and any others. Raises ModelError."""

        def refuse(layers: Collection[nn.Module], why: str) -> None:
            if names := [name for name, layer in self._linears.items() if layer in layers]:
                raise ModelError(
                    f"adapter {folder}: {', '.join(names[:3])} of a {self.model_type} model {why}: merge the adapter into its base "
                    "model (PEFT's merge_and_unload)"
                )

        parts = lora.load(folder, self._linears, self.model, self.folder)
        refuse(bucketed.made_once(self.model) & parts.keys(), "also make its relative positions, once for all texts")
        other = copy.copy(self)
        other.lora = reached = lora.Reached(parts)
        other.forward(_sample_batch(self.model.config, self.device))
        refuse(parts.keys() - reached.asked, "cannot be changed while it runs")
        other.lora, other.kernel = parts, f"{self.kernel}+lora"
        return other

    @property
    def lora_bytes(self) -> int:
        """What the LoRA adapter's weights take on the device."""
        return sum(one.numel() * one.element_size() for pair in (self.lora or {}).values() for one in pair)

    def _become_packed(self, dtype: torch.dtype, to_int8: bool) -> str:
        """Switch to packed attention and fast layers; what the model gives for a sample must not change."""
        try:
            sample = _sample(self.model.config)
            with torch.inference_mode():
                expected = [_result(self.model(input_ids=torch.tensor([ids], device=self.device))) for ids in sample]
            relative = bucketed.adapt(self.model)
            asks = relative or ("softcap" if getattr(self.model.config, "attn_logit_softcapping", None) else "")
            self.backend = attention.choose(self.device, dtype, _head_size(self.model.config), asks)
            with quiet():
                self.model.set_attn_implementation(IMPLEMENTATION)
            # Where the class cannot be told, as with MPNet, its mask function still looks here.
            self.model.config._attn_implementation_internal = IMPLEMENTATION
            products = linear.speed_up(self.model) if self.device.type == "cpu" and not to_int8 else "torch"
            batch = _sample_batch(self.model.config, self.device)
            found = _result(self.forward(batch))
        except (ModelError, ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise ModelError(f"a model of type {self.model_type!r} cannot be run packed: {error}") from error
        exact = torch.cat(expected).float()
        error = _change(found, exact)
        if not error <= TOLERANCE[dtype]:
            raise ModelError(
                f"a model of type {self.model_type!r} cannot be run packed: its results change (relative error {error:.1e}). "
                "Its attention or positions depend on more than the text itself"
            )
        tell(log, "packing checked", relative_error=float(f"{error:.1e}"))
        if not to_int8:
            return products
        int8.speed_up(self.model)
        linear.speed_up(self.model)  # the layers that are left
        loss = _change(_result(self.forward(batch)), exact)
        tell(log, "int8 checked", relative_error=float(f"{loss:.1e}"))
        if not loss <= INT8_TOLERANCE:
            raise ModelError(
                f"a model of type {self.model_type!r} loses too much in int8 (relative error {loss:.2f}): use bfloat16 or float32"
            )
        return "int8"


def _first_rows_for_heads(model: transformers.PreTrainedModel) -> None:
    """Let sequence classification heads, which look at position 0, see there the one row that they need of every packed text.

    It is the first token's; where the head averages first, the mean; a decoder's last token is chosen in `forward`.
    """
    if not type(model).__name__.endswith("ForSequenceClassification") or _scores_last_token(model):
        return
    backbone = getattr(model, model.base_model_prefix)  # pyright: ignore[reportArgumentType, reportCallIssue]
    pooler = getattr(backbone, "pooler", None)
    mean = getattr(model.config, "classifier_pooling", "cls") == "mean"  # then the head averages what is one row here

    def pick(_module: nn.Module, _args: Any, output: Any) -> Any:
        segments = segments_in_flight()
        if segments is None:
            return output
        hidden = output.last_hidden_state[0]
        if mean:
            lengths = segments.lengths.to(hidden.device)
            first = torch.segment_reduce(hidden, "mean", lengths=lengths, axis=0, unsafe=True)
        else:
            first = hidden[segments.edges[:-1].long()]
        output.last_hidden_state = first[:, None]  # (texts, 1, width)
        if pooler is not None:
            output.pooler_output = pooler(output.last_hidden_state)
        return output

    backbone.register_forward_hook(pick)


def _scores_last_token(model: transformers.PreTrainedModel) -> bool:
    """Whether it is a decoder with a linear layer `score` on each text's last token."""
    return isinstance(model, GenericForSequenceClassification)


def _head_size(config: Any) -> int:
    """Numbers in a query, 0 where the config does not say: some models have layers of several sizes, and refuse the question."""
    try:
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    except (AttributeError, RuntimeError, TypeError):
        return 0


def _rope_that_grows(config: Any) -> str:
    """The kind of rotary embedding that transformers rewrites on the module as longer texts come, "" if there is none.

    Its parameters stand in one dictionary, or in one for each type of layer.
    """
    stored = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in (stored, *stored.values()):
        kind = one.get("rope_type", one.get("type")) if isinstance(one, dict) else None
        if kind in ("dynamic", "longrope"):
            return kind
    return ""


def _sample(config: Any) -> list[list[int]]:
    """Token ids of some made-up texts, long enough to tell positions and all but wide windows apart."""
    random = np.random.default_rng(0)
    reserved = {config.pad_token_id, getattr(config, "eos_token_id", None)}
    ids = [n for n in range(min(config.vocab_size, 1000)) if n not in reserved]
    window = getattr(config, "sliding_window", None) or 0
    positions = getattr(config, "max_position_embeddings", None) or float("inf")
    longest = [window + 9] if 0 < window <= WIDEST_TRIED and window + 9 <= positions else []
    return [random.choice(ids, size).tolist() for size in (*longest, 9, 9, 5, 1)]


def _sample_batch(config: Any, device: torch.device) -> Batch:
    sample = _sample(config)
    return to_device(Ragged.joined(sample), np.arange(len(sample)), device)


def _result(output: Any) -> Tensor:
    """Hidden states or token logits (tokens, width), or text logits (texts, labels)."""
    found = output.logits if "logits" in output else output.last_hidden_state
    return found.flatten(0, 1) if found.dim() == 3 else found


def _change(found: Tensor, exact: Tensor) -> float:
    """Relative to the size of what it should be."""
    return float((found.float() - exact).norm() / exact.norm()) if found.shape == exact.shape else float("inf")


def device_of(wanted: str) -> torch.device:
    """The device of a name that `check_device` let pass."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
