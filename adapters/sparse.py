"""Sparse vectors: a weight for each token id that a text means (SPLADE) or holds (BGE-M3, IDF tables).

SPLADE: https://arxiv.org/abs/2109.10086, as sentence-transformers' SpladePooling; BGE-M3: https://arxiv.org/abs/2402.03216,
as FlagEmbedding's lexical weights; IDF tables: https://arxiv.org/abs/2411.04403, as SparseStaticEmbedding.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ..config.outputs import SPARSE
from ..config.recipe import Recipe
from ..config.sparse import SPARSE_LINEAR
from .dense import Projection
from .heads import Columns, as_asked
from .packed import Batch
from .tokens import TextTokenizer

# Of logits in memory at once. A batch of 4,096 tokens would have 500 MB of them for BERT's vocabulary, and 4 GB for XLM-R's.
LOGIT_BYTES = 16 << 20
NOT_FINITE = "a weight is NaN or infinite"


class _Logits:
    """A masked language model's own head, run on some hidden states alone: its forward, with the backbone handing them through."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        backbone: Any = model.base_model
        own = backbone.forward

        def forward(*args: Any, inputs_embeds: Tensor | None = None, **options: Any) -> Any:
            return own(*args, **options) if inputs_embeds is None else BaseModelOutput(last_hidden_state=inputs_embeds)

        backbone.forward = forward

    def __call__(self, hidden: Tensor) -> Tensor:
        """(tokens, width) -> float32 (tokens, vocabulary)."""
        return self.model(inputs_embeds=hidden[None]).logits[0].float()


class SpladeHead:
    """Hidden states to weights: log(1 + relu(logit)) of every vocabulary entry, the largest or the sum over a text's tokens."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel) -> None:
        """`model`: the whole masked language model; from here on its backbone may be run alone."""
        self.recipe, self.logits = recipe, _Logits(model)
        self.modules = [model]
        self.largest = recipe.sparse == "splade-max"  # else their sum
        self.step = max(1, LOGIT_BYTES // (4 * int(model.config.vocab_size)))

    def like(self, recipe: Recipe, skip: int) -> Self:
        """See `Head`."""
        made = copy.copy(self)
        made.recipe = recipe
        return made

    def __call__(self, output: Any, batch: Batch) -> Columns:
        """See `Head`."""
        hidden = output.last_hidden_state[0]
        ends = batch.segments.lengths.cumsum(0).tolist()
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        text, carried = 0, None  # what the tokens of a text in the piece before gave
        for start in range(0, len(hidden), self.step):
            # The largest logit has the largest weight, so that only sums need every one's logarithm.
            piece = self.logits(hidden[start : start + self.step])
            piece = piece if self.largest else self._log(piece)
            stop, done, at = start + len(piece), [], start
            while at < stop:
                end = min(ends[text], stop)
                pooled = self._pool(piece[at - start : end - start])
                carried = pooled if carried is None else self._pool(torch.stack([carried, pooled]))
                at = end
                if end == ends[text]:
                    done.append(carried)
                    text, carried = text + 1, None
            if done:
                whole = torch.stack(done)
                whole = self._log(whole) if self.largest else whole
                where, which = torch.nonzero(whole, as_tuple=True)
                found.append((where + text - len(done), which, whole[where, which]))
        rows, ids, weights = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return columns(self.recipe, batch.order, rows, ids, weights)

    def _pool(self, some: Tensor) -> Tensor:
        return some.amax(0) if self.largest else some.sum(0)

    def _log(self, logits: Tensor) -> Tensor:
        weights = logits.relu()
        for _ in range(self.recipe.log1p):
            weights = weights.log1p()
        return weights


class LexicalHead:
    """A weight for every token, from its hidden state or from a table, and of each token id in a text the largest."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, tokenizer: TextTokenizer) -> None:
        """Raises ModelError where the head's weights are not there, or a token that the recipe names."""
        self.recipe = recipe
        self.linear = Projection(folder / SPARSE_LINEAR).to(device) if recipe.sparse == "lexical" else None
        self.modules = [] if self.linear is None else [self.linear]
        self.dropped = np.array(tokenizer.ids_of(recipe.drop_tokens), np.int64)

    def like(self, recipe: Recipe, skip: int) -> Self:
        """See `Head`."""
        made = copy.copy(self)
        made.recipe = recipe
        return made

    def __call__(self, output: Any, batch: Batch) -> Columns:
        """See `Head`."""
        hidden = output.last_hidden_state[0].float()
        found = hidden if self.linear is None else self.linear(hidden).relu()
        weights = found[:, 0].cpu().numpy()
        ids = batch.tokens[0].cpu().numpy()
        texts = np.repeat(np.arange(len(batch.order)), batch.segments.lengths.numpy())
        # NaN is sorted last, so that it is what stays of its token, and is found out.
        sorted_ = np.lexsort((weights, ids, texts))
        texts, ids, weights = texts[sorted_], ids[sorted_], weights[sorted_]
        last = np.append((texts[1:] != texts[:-1]) | (ids[1:] != ids[:-1]), True)[: len(ids)]
        kept = last & (weights != 0) & ~np.isin(ids, self.dropped)
        return columns(self.recipe, batch.order, texts[kept], ids[kept], weights[kept])


def columns(recipe: Recipe, order: np.ndarray, rows: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> Columns:
    """The Arrow column of weights other than 0: `rows` (packed places, ascending), `ids` (ascending in each), float32 `weights`.

    A text with a weight that is not finite is bad. Of equal weights, `top_k` keeps those of the smaller ids.
    """
    bad = {int(order[row]): NOT_FINITE for row in np.unique(rows[~np.isfinite(weights)])}
    if recipe.threshold:
        kept = weights > recipe.threshold
        rows, ids, weights = rows[kept], ids[kept], weights[kept]
    if recipe.top_k:
        ranked = np.lexsort((ids, -weights, rows))
        counts = np.bincount(rows, minlength=len(order))
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = np.sort(ranked[place < recipe.top_k])
        rows, ids, weights = rows[kept], ids[kept], weights[kept]
    index, offsets = as_asked(np.bincount(rows, minlength=len(order)), order)
    lists = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[index].astype(kind)))
        for values, kind in ((ids, np.int32), (np.nan_to_num(weights), np.float32))
    ]
    return [pa.StructArray.from_arrays(lists, fields=list(SPARSE))], bad
