"""Tiny random checkpoints of the models that give more than a vector, saved by the libraries that make the real ones."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

from tests import models

POSITIONS = 640  # enough for texts of 600 tokens


def splade(
    path: Path,
    architecture: str = "bert",
    *,
    pooling: str = "max",
    activation: str = "relu",
    config: dict[str, Any] | None = None,
    **saved: Any,
) -> Path:
    """A SparseEncoder: Transformer, SpladePooling. `config`: further fields of config.json, `saved` of
    config_sentence_transformers.json."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    own = masked_lm(path.with_name(f"{path.name}-mlm"), architecture, **(config or {}))
    part = _transformer(own, transformer_task="fill-mask")
    SparseEncoder(modules=[part, SpladePooling(pooling, activation_function=activation)]).save(str(path))
    _edit(path / "config_sentence_transformers.json", **saved)
    return path


def masked_lm(path: Path, architecture: str = "bert", **config: Any) -> Path:
    """A *ForMaskedLM as transformers saves it. `config`: further fields of config.json."""
    import transformers

    models._save(path, transformers.AutoModelForMaskedLM, architecture, positions=POSITIONS, **config)
    return path


def inference_free(path: Path) -> Path:
    """A SparseEncoder whose Router gives documents to SPLADE (log1p twice, as OpenSearch's v3), and queries to a table."""
    import torch

    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    part = _transformer(masked_lm(path.with_name(f"{path.name}-mlm")), transformer_task="fill-mask")
    table = torch.rand(len(part.tokenizer), generator=torch.Generator().manual_seed(3)) * 5
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(part.tokenizer, weight=table)],
        document_modules=[part, SpladePooling("max", activation_function="log1p_relu")],
    )
    SparseEncoder(modules=[router]).save(str(path))
    return path


def bge_m3(path: Path, *, dims: int = 24, heads: str = "safetensors") -> Path:
    """XLM-RoBERTa with CLS pooling and BGE-M3's two heads; `heads`: safetensors, pt or none."""
    import torch
    from safetensors.torch import save_file

    models.tiny_encoder(path, "xlm-roberta", pooling="cls", max_tokens=120)
    _edit(path / "tokenizer_config.json", eos_token="</s>")
    generator = torch.Generator().manual_seed(4)
    for name, rows in (("sparse_linear", 1), ("colbert_linear", dims)):
        weights = {
            "weight": 0.2 * torch.randn(rows, 32, generator=generator),
            "bias": torch.rand(rows, generator=generator),
        }
        if heads == "safetensors":
            save_file(weights, path / f"{name}.safetensors")
        elif heads == "pt":
            torch.save(weights, path / f"{name}.pt")
    return path


def late_interaction(
    path: Path, architecture: str = "bert", *, expansion: dict[str, Any] | None = None, **options: Any
) -> Path:
    """A MultiVectorEncoder: Transformer, Dense, MultiVectorMask, Normalize; 16 dimensions a token.

    `expansion`: query_expansion; `options`: document_length, query_length.
    """
    import torch
    import transformers

    pytest.importorskip("sentence_transformers")
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    own = path.with_name(f"{path.name}-backbone")
    models._save(own, transformers.AutoModel, architecture, positions=POSITIONS)
    torch.manual_seed(5)
    dense = Dense(32, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    MultiVectorEncoder(
        modules=[
            _transformer(own, query_expansion=expansion, **options),
            dense,
            MultiVectorMask(skiplist_words=list(string.punctuation)),
            Normalize(module_input_name="token_embeddings"),
        ],
        prompts={"query": "[Q] ", "document": "[D] "},
    ).save(str(path))
    return path


def stanford_colbert(path: Path, **metadata: Any) -> Path:
    """HF_ColBERT: a BERT and the projection `linear.weight` in one file, markers in the vocabulary, artifact.metadata."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    models._save(path, transformers.AutoModel, "bert", positions=POSITIONS)
    weights = {f"bert.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    weights["linear.weight"] = torch.randn(16, 32, generator=torch.Generator().manual_seed(6))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    _edit(path / "config.json", architectures=["HF_ColBERT"])
    rename_tokens(path, "[unused0]", "[unused1]")
    told = {"query_maxlen": 32, "doc_maxlen": 180, "attend_to_mask_tokens": False, "mask_punctuation": True}
    told |= {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "dim": 16}
    models._write(path / "artifact.metadata", told | metadata)
    return path


def pylate(path: Path, **saved: Any) -> Path:
    """PyLate's own folder: Transformer and Dense, all else in config_sentence_transformers.json; "[Q] " and "[D] " are tokens."""
    import torch
    import transformers
    from safetensors.torch import save_file

    models._save(path, transformers.AutoModel, "modernbert", positions=POSITIONS)
    rename_tokens(path, "[Q] ", "[D] ")
    told = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32}
    told |= {"document_length": 300, "attend_to_expansion_tokens": False, "do_query_expansion": True}
    told |= {"skiplist_words": list(string.punctuation), "prompts": {}, "default_prompt_name": None}
    models._write(path / "config_sentence_transformers.json", told | saved)
    models._write(path / "sentence_bert_config.json", {"max_seq_length": 299, "do_lower_case": False})
    config = {"in_features": 32, "out_features": 16, "bias": False, "use_residual": False}
    models._write(path / "1_Dense/config.json", config | {"activation_function": "torch.nn.modules.linear.Identity"})
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(7))
    save_file({"linear.weight": weight}, path / "1_Dense/model.safetensors")
    modules = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    listed = [{"idx": n, "name": str(n), "path": where, "type": kind} for n, (where, kind) in enumerate(modules)]
    models._write(path / "modules.json", listed)
    return path


def static(path: Path, *, normalize: bool = False) -> Path:
    """StaticEmbedding, and Normalize after it if asked for."""
    import torch

    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(8)
    table = StaticEmbedding(models._tokenizer("bert")._tokenizer, embedding_dim=24)
    SentenceTransformer(modules=[table, *([Normalize()] if normalize else [])]).save(str(path))
    return path


def model2vec(path: Path, *, weighted: bool = True) -> Path:
    """A folder of model2vec's: `embeddings`, with `mapping` and `weights` a table of fewer rows than tokens."""
    import torch
    from safetensors.torch import save_file

    tokenizer = models._tokenizer("bert")._tokenizer
    count, generator = tokenizer.get_vocab_size(), torch.Generator().manual_seed(9)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    stored = {"embeddings": torch.randn(100 if weighted else count, 24, generator=generator)}
    if weighted:
        stored["mapping"] = torch.randint(0, 100, (count,), generator=generator)
        stored["weights"] = torch.rand(count, generator=generator)
    save_file(stored, path / "model.safetensors")
    models._write(
        path / "config.json", {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True}
    )
    return path


def rename_tokens(folder: Path, *names: str) -> None:
    """Give the last entries of the tokenizer's vocabulary other names, as real vocabularies have entries that no text meets."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    for name, old in zip(names, sorted(vocabulary, key=vocabulary.get)[-len(names) :], strict=True):
        vocabulary[name] = vocabulary.pop(old)
        if "merges" in found["model"]:
            found["model"]["merges"] = [pair for pair in found["model"]["merges"] if "".join(pair) != old]
    path.write_text(json.dumps(found))


def _transformer(folder: Path, **options: Any) -> Any:
    from sentence_transformers.base.modules import Transformer

    return Transformer(str(folder), **options)


def _edit(path: Path, **changes: Any) -> None:
    models._write(path, json.loads(path.read_text()) | changes)
