"""Every family of models at its base size: Lading's packed batches against the reference library's padded ones.

    python benchmarks/families.py [--family bert --family modernbert] [--threads 1] [--texts 32] [--quick] [--json]

Random weights of 12 layers of 768 unless the table below says otherwise, and the tokenizer of all-MiniLM-L6-v2 for all of them, on
texts with a long tail to 512 tokens, float32. The reference is sentence-transformers, which sorts by length and pads, with the
attention that transformers chooses (SDPA where the class has it), all of the threads, and the best of three batch sizes: the fastest of a
first round, in which everybody also warms up. Then both take turns, and medians count: CPU seconds on one thread, where other
programs disturb them less, else the clock. Errors are of vectors, relative, the worst of all texts. Operations are those of the texts without padding, as torch counts them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import candidates, gemm
from benchmarks.corpus import natural_lengths, texts_of_lengths
from benchmarks.report import Report, machine

BATCHES = (8, 32, 128)
MOST_ERROR = 1e-3  # of a vector, relative: more is another result, and no figure counts
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A configuration of transformers, and how many times the reference it should run."""

    model_type: str
    sizes: dict[str, Any]
    aim: float = 2.2
    note: str = ""

    def small(self) -> Family:
        """Two layers, to try the script."""
        names = [name for name in self.sizes if name in ("num_hidden_layers", "n_layers", "num_layers")]
        return dataclasses.replace(self, sizes=self.sizes | dict.fromkeys(names, 2), aim=0.0)


_GROUPED = {"num_key_value_heads": 8, "head_dim": 128, "hidden_size": 1024, "num_attention_heads": 16}
FAMILIES = {
    "bert": Family("bert", BASE),
    "roberta": Family("roberta", BASE | {"max_position_embeddings": 514}),
    "xlm-roberta": Family("xlm-roberta", BASE | {"max_position_embeddings": 514}),
    "distilbert": Family("distilbert", {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}, note="6 layers"),
    "electra": Family("electra", BASE | {"embedding_size": 768}),
    "albert": Family("albert", BASE | {"embedding_size": 128, "hidden_act": "gelu_new"}),
    "modernbert": Family(
        "modernbert", BASE | {"num_hidden_layers": 22, "intermediate_size": 1152}, note="22 layers, GeGLU of 1152"
    ),
    "nomic_bert": Family("nomic_bert", BASE | {"hidden_act": "silu"}, note="SwiGLU"),
    "gte": Family("gte", BASE, note="GeGLU"),
    "eurobert": Family("eurobert", BASE | {"num_key_value_heads": 12}, note="SwiGLU"),
    "qwen3": Family("qwen3", _GROUPED | {"num_hidden_layers": 8, "intermediate_size": 3072}, note="0.6B with 8 of 28 layers"),
    "gemma3": Family(
        "gemma3_text",
        BASE | {"num_hidden_layers": 12, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 256}
        | {"intermediate_size": 1152, "sliding_window": 512, "use_bidirectional_attention": True},
        note="300M with 12 of 24 layers",
    ),
    "mpnet": Family("mpnet", BASE | {"max_position_embeddings": 514, "pad_token_id": 1}, aim=1.8, note="buckets"),
    "deberta-v2": Family(
        "deberta-v2",
        BASE | {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
        | {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "max_position_embeddings": 512},
        aim=1.8,
        note="v3's attention, buckets",
    ),
    "t5": Family(
        "t5", {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12}, aim=1.8, note="encoder, buckets"
    ),
}  # fmt: skip


def build(family: Family, folder: Path) -> Callable[[Sequence[int]], int]:
    """Save a checkpoint with random weights and a real tokenizer; returns the count of its operations."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(candidates.minilm())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
    special["vocab_size"] = len(tokenizer)
    config = transformers.AutoConfig.for_model(family.model_type, **(special | family.sizes))
    torch.manual_seed(0)
    auto_class: Any = transformers.T5EncoderModel if family.model_type == "t5" else transformers.AutoModel
    make = auto_class._from_config if family.model_type == "t5" else auto_class.from_config
    model = make(config, attn_implementation="eager", dtype=torch.float32).eval()
    operations = gemm.counted(model)
    model.save_pretrained(folder)
    tokenizer.model_max_length = candidates.MAX_TOKENS
    tokenizer.save_pretrained(folder)
    return operations


def measure(
    family: Family, texts: list[str], folder: Path, threads: int, rounds: int, budget: int
) -> tuple[dict[str, float], str]:
    """Seconds of both, operations, tokens and the worst relative error; and what ran, in words."""
    operations = build(family, folder)
    kernel, ours = candidates.lading(folder, texts, "float32", budget, threads)
    lengths = candidates.token_counts(folder, texts)
    clock = _clock(threads)
    rivals = {
        batch: candidates.sentence_transformers(folder, texts, "float32", batch, threads, unit=False)
        for batch in BATCHES
        if batch < 2 * len(texts)
    }

    def seconds(run: candidates.Candidate) -> tuple[float, np.ndarray]:
        began = clock()
        vectors = run()
        return clock() - began, vectors

    _, found = seconds(ours)
    first = {batch: seconds(run) for batch, run in rivals.items()}
    best = min(first, key=lambda batch: first[batch][0])
    expected = first[best][1]
    taken: list[tuple[float, float]] = []
    for number in range(rounds):
        pair = (ours, rivals[best]) if number % 2 == 0 else (rivals[best], ours)
        times = [seconds(run)[0] for run in pair]
        taken.append((times[0], times[1]) if number % 2 == 0 else (times[1], times[0]))
    mine, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    figures = {
        "mine": mine,
        "theirs": theirs,
        "tokens": float(lengths.sum()),
        "operations": float(operations(lengths.tolist())),
        "error": float(errors.max()),
    }
    return figures, f"{kernel.split('/')[0]}; reference at batch {best}{'; ' + family.note if family.note else ''}"


def show(report: Report, name: str, family: Family, found: dict[str, float], ran: str, peak: float, per: str) -> None:
    """One family's row. Exits where the results are not those of the reference."""
    mine, theirs, work = found["mine"], found["theirs"], found["operations"] / 1e9
    below = f"; aim {family.aim}" if theirs / mine < family.aim else ""
    report.row(
        name,
        [
            ("tokens", found["tokens"] / mine, f"tokens/{per}", found["tokens"] / theirs),
            ("ratio", theirs / mine, "times", family.aim or None),
            ("operations", work / mine, "GFLOP/s", work / theirs),
            ("share of the GEMM rate", 100 * work / mine / peak, "%", 100 * work / theirs / peak),
            ("worst relative error", 1e6 * found["error"], "millionths", None),
        ],
        ran + below,
    )
    if not found["error"] <= MOST_ERROR:
        sys.exit(f"{name}: relative error {found['error']:.1e}, more than {MOST_ERROR}")


def run(
    report: Report, names: Sequence[str], *, texts: int, threads: int, rounds: int, budget: int, quick: bool
) -> int:
    """All of the families asked for; how many could not run."""
    from lading.config.errors import ModelError

    given = texts_of_lengths(natural_lengths(texts))
    per = "CPU s" if threads == 1 else "s"
    refused = 0
    report.title(f"families: {texts} texts, {threads} thread(s), float32, median of {rounds}; {machine()}")
    report.head(f"tok/{per}", "ratio", "GFLOP/s", "% of GEMM", "error, 1e-6")
    for name in names:
        family = FAMILIES[name].small() if quick else FAMILIES[name]
        with tempfile.TemporaryDirectory() as folder:
            try:
                found, ran = measure(family, given, Path(folder), threads, rounds, budget)
            except ModelError as error:
                report.title(f"  {name}: not run: {error}")
                refused += 1
                continue
        # After each family: a machine that others use is not as fast all the time.
        show(report, name, family, found, ran, _peak(threads), per)
        gc.collect()
    return refused


def _clock(threads: int) -> Callable[[], float]:
    return time.process_time if threads == 1 else time.perf_counter


def _peak(threads: int) -> float:
    """GFLOP/s of float32 products of a base model's shapes, on the threads."""
    import torch

    torch.set_num_threads(threads)
    try:
        return gemm.peak(gemm.Sizes(12, 768, 3072), torch.float32, clock=_clock(threads))
    finally:
        torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=4096, help="tokens per packed batch")
    parser.add_argument(
        "--quick", action="store_true", help="two layers, few texts: to try the script, not for figures"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.texts, wanted.rounds = 16, 1
    # Before the libraries that read them are loaded.
    threads = {name: str(wanted.threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(threads, TOKENIZERS_PARALLELISM="false" if wanted.threads == 1 else "true")
    candidates.hush()
    refused = run(
        Report(wanted.json),
        wanted.family or list(FAMILIES),
        texts=wanted.texts,
        threads=wanted.threads,
        rounds=wanted.rounds,
        budget=wanted.budget,
        quick=wanted.quick,
    )
    if refused and wanted.family:
        sys.exit(f"{refused} of the families asked for did not run")


if __name__ == "__main__":
    main()
