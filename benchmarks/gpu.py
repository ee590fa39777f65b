"""Encoding on a CUDA device in bfloat16: Lading's packed batches, kernel by kernel, against sentence-transformers.

    python benchmarks/gpu.py [--model bert-base] [--lengths natural] [--texts 4096] [--budget 65536] [--json]

Random weights in the shapes of three models, and two loads: texts with a long tail to 512 tokens, and texts of 512. Both sides are given
token ids, since tokenising on CPUs would hide the device, and give vectors on the host. Lading runs its variable-length kernels in
turn (LADING_ATTENTION): torch's, and flash-attn where that is installed. The reference sorts by length and pads, with SDPA, at the best
of three batch sizes; and with flash-attn as well, and then unpads by itself where it can. All take turns; medians count.

MFU is the share of the device's dense bfloat16 peak that the texts' own operations take, padding not counted (after Chowdhery et al.,
PaLM, appendix B), by the peak that its maker states where the device is in the table below. The share of the fastest matrix product
measured here stands beside it. Without a CUDA device it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import candidates, families
from benchmarks.corpus import natural_lengths, texts_of_lengths
from benchmarks.report import Report, machine

LEAST_COSINE = 0.999  # of the worst text, Lading's bfloat16 to the reference's
KERNELS = ("torch-varlen", "flash-attn")
# Dense bfloat16 TFLOP/s by a word of the device's name, as the makers' data sheets have them; the first that fits.
PEAKS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
    "L4": 121.0,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model as far as its count of operations depends on it."""

    model_type: str
    layers: int
    width: int
    heads: int
    inner: int
    key_heads: int = 0  # 0: as many as heads
    head_width: int = 0  # 0: width / heads
    gated: bool = False  # three projections in the feed-forward block instead of two
    causal: bool = False

    def family(self) -> families.Family:
        """Its configuration."""
        sizes: dict[str, Any] = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner,
        }
        if self.key_heads:
            sizes |= {"num_key_value_heads": self.key_heads, "head_dim": self.head_width}
        else:
            sizes["max_position_embeddings"] = candidates.MAX_TOKENS + 2
        return families.Family(self.model_type, sizes)

    def operations(self, lengths: Sequence[int], *, whole: bool = False) -> float:
        """Floating-point operations of texts with these many tokens: 2 for a multiplication and its addition.

        Of causal attention the half that is needed counts, or with `whole` all of the square.
        """
        head = self.head_width or self.width // self.heads
        keys = self.key_heads or self.heads
        attention = self.width * head * (2 * self.heads + 2 * keys)  # query and output, key and value
        linears = 2 * self.layers * (attention + (3 if self.gated else 2) * self.width * self.inner)
        squares = 4 * self.layers * self.heads * head * (0.5 if self.causal and not whole else 1.0)
        return linears * float(sum(lengths)) + squares * float(sum(length * length for length in lengths))

    def small(self) -> Shape:
        """Two layers of 64, with the same proportions of heads."""
        grouped = {"key_heads": 2, "head_width": 16} if self.key_heads else {}
        return dataclasses.replace(self, layers=2, width=64, heads=4, inner=128, **grouped)


SHAPES = {
    "bert-base": Shape(model_type="bert", layers=12, width=768, heads=12, inner=3072),
    "xlm-r-large": Shape(model_type="xlm-roberta", layers=24, width=1024, heads=16, inner=4096),
    "qwen3-0.6b": Shape(
        model_type="qwen3", layers=28, width=1024, heads=16, inner=3072, key_heads=8, head_width=128, gated=True, causal=True
    ),
}  # fmt: skip
LENGTHS: dict[str, Callable[[int], list[int]]] = {"natural": natural_lengths, "512": lambda count: [600] * count}

Candidate = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    run: Candidate  # float32 (texts, dims), in the order of the texts
    fill: float  # share of the tokens computed that are texts and not padding
    note: str = ""


def stated_peak(device_name: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a device by its maker, None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def measured_peak(device: str, size: int) -> float:
    """TFLOP/s of bfloat16 products of square matrices: the best of several."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = math.inf
    with torch.inference_mode():
        for _ in range(8):
            synchronize(device)
            began = time.perf_counter()
            for _ in range(4):
                a @ b
            synchronize(device)
            best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best / 1e12


def synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def packed(folder: Path, texts: list[str], device: str, kernel: str, budget: int) -> Contestant:
    """Lading's adapter with one kernel, "" for its own choice; tokenised ahead."""
    import pyarrow as pa

    from lading.adapters import attention, load
    from lading.config.checkpoint import locate, resolve
    from lading.workers.packer import fill_ratio, pack

    recipe = resolve(locate(str(folder)), task="encode", max_tokens=candidates.MAX_TOKENS, precision="bfloat16")
    before = os.environ.get(attention.OVERRIDE)
    if kernel:
        os.environ[attention.OVERRIDE] = kernel
    try:
        adapter = load(recipe, folder, device=device, threads=1)
    finally:
        os.environ.pop(attention.OVERRIDE, None)
        if before is not None:
            os.environ[attention.OVERRIDE] = before
    prepared = adapter.prepare([pa.array(texts)])
    batches = pack(prepared.costs, budget)

    def run() -> np.ndarray:
        vectors = np.empty((len(texts), recipe.dims), np.float32)
        for batch in batches:
            found = adapter.run([(prepared, batch)]).batch.column(0)
            vectors[batch] = found.flatten().to_numpy().reshape(len(batch), -1)
        return vectors

    return Contestant(
        run, 1.0, f"{100 * fill_ratio(prepared.costs, batches, budget):.1f} % of the batches' budget used"
    )


def reference(folder: Path, texts: list[str], device: str, batch: int, implementation: str) -> Contestant:
    """sentence-transformers on batches of texts of like length, tokenised ahead by itself: padded, or unpadded where it does so."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import batch_to_device

    settings = {"dtype": torch.bfloat16, "attn_implementation": implementation}
    model = SentenceTransformer(str(folder), device=device, model_kwargs=settings).eval()
    model.max_seq_length = candidates.MAX_TOKENS
    lengths = candidates.token_counts(folder, texts)
    order = np.argsort(-lengths, kind="stable")
    rows = [order[start : start + batch] for start in range(0, len(order), batch)]
    prepared = [model.preprocess([texts[row] for row in chosen]) for chosen in rows]
    computed = sum(int(torch.as_tensor(features["input_ids"]).numel()) for features in prepared)

    @torch.inference_mode()
    def run() -> np.ndarray:
        vectors = np.empty((len(texts), model.get_embedding_dimension() or 0), np.float32)
        for chosen, features in zip(rows, prepared, strict=True):
            found = model(batch_to_device(dict(features), torch.device(device)))["sentence_embedding"]
            vectors[chosen] = found.float().cpu().numpy()
        return vectors

    return Contestant(run, int(lengths.sum()) / computed)


def contestants(
    folder: Path, texts: list[str], device: str, budget: int, batches: Sequence[int]
) -> dict[str, Contestant]:
    """All that can run here. The reference at each batch size: `measure` leaves the best."""
    has_flash = find_spec("flash_attn") is not None
    given: dict[str, Contestant] = {}
    if device.startswith("cuda"):
        for kernel in KERNELS:
            if kernel != "flash-attn" or has_flash:
                given[f"lading {kernel}"] = packed(folder, texts, device, kernel, budget)
    else:
        for kernel in ("", "matmul-runs"):
            given[f"lading {kernel or 'own choice'}"] = packed(folder, texts, device, kernel, budget)
    for implementation in ("sdpa", *(["flash_attention_2"] if has_flash and device.startswith("cuda") else [])):
        for batch in batches:
            name = f"sentence-transformers {implementation}, batch {batch}"
            given[name] = reference(folder, texts, device, batch, implementation)
    return given


def measure(given: dict[str, Contestant], rounds: int, device: str) -> dict[str, tuple[float, np.ndarray]]:
    """Median seconds and vectors: everybody warms up twice, the reference keeps its best batch of each kind, then all take turns."""

    def seconds(run: Candidate) -> tuple[float, np.ndarray]:
        synchronize(device)
        began = time.perf_counter()
        vectors = run()
        synchronize(device)
        return time.perf_counter() - began, vectors

    for one in given.values():
        one.run()
    first = {name: seconds(one.run) for name, one in given.items()}
    kept: dict[str, str] = {}  # a candidate without its batch size -> its fastest
    for name in given:
        kind = name.partition(", batch")[0]
        if kind not in kept or first[name][0] < first[kept[kind]][0]:
            kept[kind] = name
    taken: dict[str, list[float]] = {name: [] for name in kept.values()}
    for _ in range(rounds):
        for name, times in taken.items():
            times.append(seconds(given[name].run)[0])
    return {name: (statistics.median(times), first[name][1]) for name, times in taken.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What all models share."""

    report: Report
    device: str
    stated: float | None  # TFLOP/s
    measured: float


def show(
    bench: Bench,
    shape: Shape,
    lengths: list[int],
    given: dict[str, Contestant],
    found: dict[str, tuple[float, np.ndarray]],
) -> None:
    """A row for each candidate; ratios are to the fastest of the reference. Exits where vectors are not the reference's."""
    tokens, operations = sum(lengths), shape.operations(lengths)
    rivals = {name: one for name, one in found.items() if not name.startswith("lading")}
    best = min(rivals, key=lambda name: rivals[name][0])
    base, expected = rivals[best]
    bench.report.head("tokens/s", "ratio", "TFLOP/s", "MFU %", "% of GEMM", "fill %", "min cosine")
    peak = bench.stated or bench.measured
    for name, (seconds, vectors) in found.items():
        rate = operations / seconds / 1e12
        dots = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
        cosine = float(dots.min())
        bench.report.row(
            name,
            [
                ("tokens", tokens / seconds, "tokens/s", tokens / base),
                ("ratio", base / seconds, "times", 1.0),
                ("operations", rate, "TFLOP/s", operations / base / 1e12),
                ("MFU", 100 * rate / peak, "%", None),
                ("share of the GEMM rate", 100 * rate / bench.measured, "%", None),
                ("fill", 100 * given[name].fill, "%", None),
                ("lowest cosine", cosine, "", 1.0),
            ],
            "the reference at its best" if name == best else given[name].note,
        )
        if not cosine >= LEAST_COSINE:
            sys.exit(f"{name}: cosine {cosine} to {best}, less than {LEAST_COSINE}")


def run(
    bench: Bench, models: Sequence[str], loads: Sequence[str], *, texts: int, rounds: int, budget: int, quick: bool
) -> None:
    """Every model under every load."""
    for model in models:
        shape = SHAPES[model].small() if quick else SHAPES[model]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            families.build(shape.family(), folder)
            for load in loads:
                words = texts_of_lengths(LENGTHS[load](texts))
                lengths = candidates.token_counts(folder, words).tolist()
                given = contestants(folder, words, bench.device, budget, (2, 4) if quick else (32, 128, 512))
                bench.report.title(
                    f"{model}, lengths {load}: {texts} texts, {sum(lengths):,} tokens, median of {rounds}"
                )
                show(bench, shape, lengths, given, measure(given, rounds, bench.device))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), action="append", help="default: all")
    parser.add_argument("--lengths", choices=tuple(LENGTHS), action="append", help="default: both")
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=65536, help="tokens per packed batch")
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, few texts: to try the script, not for figures"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu, with --quick: the script's own test
    wanted = parser.parse_args(arguments)
    if wanted.device == "cpu" and not wanted.quick:
        parser.error("on a CPU it only tries itself (--quick); benchmarks/families.py measures CPUs")
    if wanted.quick:
        wanted.texts, wanted.rounds, wanted.budget = 8, 1, 1024
    candidates.hush()
    import torch

    if wanted.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"gpu.py: torch {torch.__version__} sees no CUDA device here; families.py measures CPUs", file=sys.stderr)
        sys.exit(2)
    name = torch.cuda.get_device_name(wanted.device) if wanted.device.startswith("cuda") else machine()
    bench = Bench(
        Report(wanted.json),
        wanted.device,
        stated_peak(name),
        measured_peak(wanted.device, 256 if wanted.quick else 8192),
    )
    stated = (
        f"{bench.stated} TFLOP/s by its maker" if bench.stated else "no stated peak known: MFU is by the measured one"
    )
    bench.report.title(f"{name}, torch {torch.__version__}, bfloat16; {stated}, {bench.measured:.1f} measured")
    if find_spec("flash_attn") is None:
        bench.report.title("flash-attn is not installed: left out on both sides")
    run(
        bench,
        wanted.model or list(SHAPES),
        wanted.lengths or list(LENGTHS),
        texts=wanted.texts,
        rounds=wanted.rounds,
        budget=wanted.budget,
        quick=wanted.quick,
    )


if __name__ == "__main__":
    main()
