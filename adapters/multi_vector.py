"""Multi-vectors: a vector for every token, compared by MaxSim (ColBERT, https://arxiv.org/abs/2112.01488).

Follows sentence-transformers' MultiVectorEncoder (Dense, MultiVectorMask, Normalize, HierarchicalTokenPooling) on packed
hidden states, and FlagEmbedding for BGE-M3.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from ..config.errors import ModelError
from ..config.outputs import vector_field
from ..config.recipe import Recipe
from .dense import Projection, store
from .heads import Columns, as_asked
from .packed import Batch
from .tokens import TextTokenizer


class MultiVectorHead:
    """Hidden states to a list of vectors a text."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, tokenizer: TextTokenizer) -> None:
        """Raises ModelError where the projection is not there, or what joins tokens is not installed."""
        self.recipe = recipe
        self.modules = [Projection(folder / name).to(device) for name in recipe.token_modules]
        skipped = tokenizer.ids_of(recipe.skip_tokens, all_needed=False)
        self.skipped = torch.tensor(skipped, dtype=torch.long, device=device)
        if recipe.token_pooling > 1:
            _ward()

    def like(self, recipe: Recipe, skip: int) -> Self:
        """See `Head`."""
        made = copy.copy(self)
        made.recipe = recipe
        return made

    def __call__(self, output: Any, batch: Batch) -> Columns:
        """See `Head`."""
        vectors = output.last_hidden_state[0].float()
        for project in self.modules:
            vectors = project(vectors)
        vectors = vectors[:, : self.recipe.token_dims]
        if self.recipe.token_normalize:
            vectors = F.normalize(vectors, dim=1)
        kept = ~torch.isin(batch.tokens[0], self.skipped)
        if self.recipe.drop_first:
            kept[batch.segments.edges[:-1].long()] = False
        texts = np.repeat(np.arange(len(batch.order)), batch.segments.lengths.numpy())[kept.cpu().numpy()]
        found = vectors[kept].cpu().numpy()
        counts = np.bincount(texts, minlength=len(batch.order))
        if self.recipe.token_pooling > 1:
            parts = np.split(found, np.cumsum(counts)[:-1])
            joined = [join_tokens(part, self.recipe.token_pooling) for part in parts]
            found, counts = np.concatenate(joined), np.array([len(part) for part in joined], np.int64)
        (values,), wrong = store(found, self.recipe.vector_type)
        owners = np.repeat(batch.order, counts)
        bad = {int(owners[place]): reason.replace("the vector", "a vector") for place, reason in wrong.items()}
        index, offsets = as_asked(counts, batch.order)
        kind = pa.list_(vector_field("item", found.shape[1], self.recipe.vector_type))
        return [pa.ListArray.from_arrays(pa.array(offsets), values.take(pa.array(index)), type=kind)], bad


def join_tokens(vectors: np.ndarray, factor: int) -> np.ndarray:
    """Unit vectors (tokens, dims), neighbours in meaning joined until one of `factor` is left; the first stays as it is.

    Ward's clustering by cosine distance, each cluster its mean, brought to unit length: Clavié et al.,
    https://arxiv.org/abs/2409.14683, as HierarchicalTokenPooling does it. A text's own vectors alone decide.
    """
    linkage, cut, condensed = _ward()
    first, rest = vectors[:1], vectors[1:]
    clusters = max(len(rest) // factor, 1)
    if clusters < len(rest) and np.isfinite(vectors).all():
        distance = np.clip(1 - rest @ rest.T, 0, 2)
        labels = cut(linkage(condensed(distance, checks=False), method="ward"), t=clusters, criterion="maxclust")
        _, which = np.unique(labels, return_inverse=True)
        sums = np.zeros((int(which.max()) + 1, rest.shape[1]), np.float32)
        np.add.at(sums, which, rest)
        vectors = np.concatenate([first, sums / np.bincount(which)[:, None].astype(np.float32)])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _ward() -> tuple[Any, Any, Any]:
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform
    except ImportError:
        raise ModelError("token_pooling needs the package scipy: pip install scipy") from None
    return linkage, fcluster, squareform
