"""Texts to vectors: Lading against sentence-transformers and OpenVINO, and against what the machine can do.

    python benchmarks/encode.py [--part gemm|forward|job] [--threads 2] [--minutes 1] [--quick] [--json]

gemm     the rate of this machine's matrix products on the model's shapes: the bound of everything below
forward  tokenising and the forward pass alone, on a few hundred texts with a long tail to 512 tokens
job      the whole command, Parquet in and LanceDB out, on a corpus of `--minutes` of work (imports and loading apart)

All candidates see the same texts and threads and take turns; medians count. Ratios are to sentence-transformers'
default (float32, batch 32): by CPU seconds on one thread, where other programs disturb them less, and by the clock
on more. Cosines are the lowest of all texts, to the same default.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import candidates, gemm
from benchmarks.corpus import natural_lengths, texts_of_lengths
from benchmarks.report import Report, machine

DEFAULT = "sentence-transformers float32, batch 32"
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.9995, "int8": 0.99}
OPENVINO_BUDGETS = (512, 1024, 2048)  # tokens with padding; from 2,048 up it only gets slower
PARTS = ("gemm", "forward", "job")

Seconds = tuple[float, ...]  # wall, CPU


@dataclasses.dataclass(slots=True)
class Bench:
    """What the parts share."""

    report: Report
    model: Path
    sizes: gemm.Sizes
    threads: int
    budget: int
    peaks: dict[str, float] = dataclasses.field(default_factory=dict)  # precision -> GFLOP/s

    @property
    def clock(self) -> int:
        """0: ratios by wall seconds, 1: by CPU seconds."""
        return int(self.threads == 1)

    def head(self) -> None:
        unit = ("tokens/s", "tok/CPU s")[self.clock]
        self.report.head(unit, "docs", "ratio", "GFLOP/s", "% of GEMM", "min cosine")

    def show(
        self, name: str, seconds: Seconds, base: Seconds, work: Work, cosine: float | None = None, note: str = ""
    ) -> None:
        """Rates of one candidate, beside the default's."""
        mine, theirs = seconds[self.clock], base[self.clock]
        per = ("s", "CPU s")[self.clock]
        rate = work.operations / mine / 1e9
        peak = self.peaks["bfloat16" if "bf" in name or "int8" in name else "float32"]
        figures: list[tuple[str, float, str, float | None]] = [
            ("tokens", work.tokens / mine, f"tokens/{per}", work.tokens / theirs),
            ("docs", work.texts / mine, f"docs/{per}", work.texts / theirs),
            ("ratio", theirs / mine, "times", 1.0),
            ("operations", rate, "GFLOP/s", peak),
            (
                "share of the GEMM rate",
                100 * rate / peak,
                "%",
                100 * work.operations / theirs / 1e9 / self.peaks["float32"],
            ),
        ]
        if cosine is not None:
            figures.append(("lowest cosine", cosine, "", 1.0))
        self.report.row(name, figures, note)


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What a candidate is given."""

    texts: int
    tokens: int
    operations: int

    @classmethod
    def of(cls, bench: Bench, texts: list[str]) -> Work:
        lengths = candidates.token_counts(bench.model, texts)
        return cls(len(texts), int(lengths.sum()), bench.sizes.operations(lengths.tolist()))


def measure_peaks(bench: Bench) -> None:
    """Fill `bench.peaks`; the best of several, as the bound is what the machine can do at rest."""
    import torch

    torch.set_num_threads(bench.threads)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        found = gemm.peak(bench.sizes, dtype)
        bench.peaks[name] = max(found, bench.peaks.get(name, 0.0))


def show_peaks(bench: Bench) -> None:
    import torch

    bench.report.title(f"matrix products of the model's shapes, {bench.threads} thread(s)")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        plain = gemm.peak(bench.sizes, dtype, prepacked=False)
        bench.report.line(f"{name}: oneDNN, prepacked weights", bench.peaks[name], "GFLOP/s", plain, "torch's own")


def forward(bench: Bench, count: int, rounds: int, peers: bool) -> None:
    """Tokenising and the forward pass: everybody on the same texts, by turns; without `peers`, Lading and the default."""
    texts = texts_of_lengths(natural_lengths(count))
    work = Work.of(bench, texts)
    title = f"forward pass: {work.texts} texts, {work.tokens:,} tokens, {bench.threads} thread(s), median of {rounds}"
    bench.report.title(f"{title}; {machine()}")
    measured = candidates.measure(_contestants(bench, texts, peers), rounds)
    bench.head()
    measure_peaks(bench)
    base, expected = measured[DEFAULT][:2], measured[DEFAULT][2]
    fault = ""
    for name, (wall, cpu, vectors) in measured.items():
        cosine = float((vectors * expected).sum(1).min())
        bench.show(name, (wall, cpu), base, work, cosine)
        for precision, least in LEAST_COSINE.items():
            if name.startswith(f"lading {precision}") and cosine < least:
                fault = f"{name}: cosine {cosine} is below {least}"
    for precision in ("float32", "bfloat16"):
        ceiling = bench.peaks[precision] * 1e9 * base[bench.clock] / work.operations
        bench.report.line(f"highest {precision} ratio the GEMM rate allows", ceiling, "times", None, "products alone")
    if peers:
        _against_the_best(bench, {name: (wall, cpu) for name, (wall, cpu, _) in measured.items()})
    if fault:
        sys.exit(fault)


def _contestants(bench: Bench, texts: list[str], peers: bool) -> dict[str, candidates.Candidate]:
    model, threads = bench.model, bench.threads
    given = {DEFAULT: candidates.sentence_transformers(model, texts, "float32", 32, threads)}
    for precision in ("float32", "bfloat16", *candidates.int8_if_it_runs()):
        kernel, run = candidates.lading(model, texts, precision, bench.budget, threads)
        given[f"lading {precision}, {kernel.split('/')[0]}"] = run
    if not peers:
        return given
    for dtype, batch in (("float32", 8), ("float32", 128), ("bfloat16", 32)):
        name = f"sentence-transformers {dtype}, batch {batch}"
        given[name] = candidates.sentence_transformers(model, texts, dtype, batch, threads)
    for precision in ("f32", "bf16"):
        for budget in OPENVINO_BUDGETS:
            for streams in sorted({1, threads}):
                name = f"openvino {precision}, budget {budget}, streams {streams}"
                given[name] = candidates.openvino(model, texts, precision, budget, threads, streams)
    return given


def _against_the_best(bench: Bench, seconds: dict[str, Seconds]) -> None:
    """Lading beside each peer's best setting of the same precision."""
    for ours, peers in (
        ("lading float32", ("sentence-transformers float32", "openvino f32")),
        ("lading bfloat16", ("sentence-transformers bfloat16", "openvino bf16")),
    ):
        mine = min(taken[bench.clock] for name, taken in seconds.items() if name.startswith(ours))
        for peer in peers:
            theirs, name = min((taken[bench.clock], name) for name, taken in seconds.items() if name.startswith(peer))
            bench.report.line(f"{ours} against {peer} at its best", theirs / mine, "times", 1.0, name)


def job(bench: Bench, minutes: float, rounds: int, folder: Path) -> None:
    """The whole command beside the forward pass alone on the same texts, and the same by hand with the reference."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    trial = texts_of_lengths(natural_lengths(200, seed=1), seed=1)
    _, run = candidates.lading(bench.model, trial, "float32", bench.budget, bench.threads)
    count = max(200, int(60 * minutes * len(trial) / min(_timed(run)[0] for _ in range(2))))
    texts = texts_of_lengths(natural_lengths(count, seed=2), seed=2)
    work = Work.of(bench, texts)
    corpus = folder / "corpus.parquet"
    pq.write_table(pa.table({"doc_id": [f"doc-{n:07d}" for n in range(count)], "text": texts}), corpus)
    bench.report.title(
        f"whole command: {count:,} texts, {work.tokens:,} tokens, {bench.threads} thread(s), Parquet in, LanceDB out"
    )

    alone = {
        precision: candidates.lading(bench.model, texts, precision, bench.budget, bench.threads)[1]
        for precision in ("float32", "bfloat16")
    }
    commands: dict[str, Callable[[str], dict[str, Any]]] = {
        precision: lambda to, precision=precision: _lading_job(bench, corpus, precision, to) for precision in alone
    }
    start = _lading_job(bench, corpus, "float32", f"lancedb://{folder}/start/docs", "--limit", "8")
    taken: dict[str, list[tuple[float, float]]] = {}
    said: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for precision in alone:
            taken.setdefault(f"alone {precision}", []).append(_timed(alone[precision]))
            said[precision] = commands[precision](f"lancedb://{folder}/{precision}-{number}/docs")
            cpu = said[precision]["process_cpu_s"] - start["process_cpu_s"]
            taken.setdefault(precision, []).append((said[precision]["elapsed_s"], cpu))
        said["reference"] = _reference_job(bench, corpus, folder / f"reference-{number}")
        taken.setdefault("reference", []).append((said["reference"]["elapsed_s"], said["reference"]["cpu_s"]))
    median = {name: tuple(statistics.median(column) for column in zip(*times)) for name, times in taken.items()}  # noqa: B905
    for precision in alone:
        if said[precision]["rows_done"] != count:
            sys.exit(f"{said[precision]['rows_done']} of {count} rows came through")
    _show_job(bench, work, median, said)


def _show_job(bench: Bench, work: Work, median: dict[str, Seconds], said: dict[str, dict[str, Any]]) -> None:
    base = median["reference"]
    bench.head()
    bench.show(DEFAULT, base, base, work, note="by hand")
    for precision in ("float32", "bfloat16"):
        found = said[precision]
        note = f"fill {found['fill']:.1%}, device busy {found['busy']:.1%}"
        bench.show(f"lading {precision}, forward alone", median[f"alone {precision}"], base, work)
        bench.show(f"lading {precision}, whole command", median[precision], base, work, note=note)
        for clock, name in enumerate(("time", "CPU seconds")):
            more = 100 * (median[precision][clock] / median[f"alone {precision}"][clock] - 1)
            bench.report.line(
                f"lading {precision}: whole command over the forward alone, {name}",
                more,
                "%",
                10.0,
                "start-up left out" if clock else "imports, planning and loading left out",
            )
    found = said["float32"]
    bench.report.line("lading: importing and planning", found["process_s"] - found["elapsed_s"] - found["load_s"], "s")
    bench.report.line("lading: loading the model", found["load_s"], "s")
    bench.report.line("sentence-transformers: importing", said["reference"]["import_s"], "s")
    bench.report.line("sentence-transformers: loading the model", said["reference"]["load_s"], "s")


def _lading_job(bench: Bench, corpus: Path, precision: str, to: str, *more: str) -> dict[str, Any]:
    """The command's summary, with the process's own seconds."""
    command = [sys.executable, "-m", "lading.cli", "encode", str(corpus), "--id", "doc_id", "--model", str(bench.model)]
    command += ["--max-tokens", "512", "--precision", precision, "--threads", str(bench.threads), "--to", to, "--json"]
    command += ["--batch-tokens", str(bench.budget), *more]
    return _child(command)


def _reference_job(bench: Bench, corpus: Path, folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("reference_job.py")
    command = [sys.executable, str(script), str(corpus), str(folder), "--model", str(bench.model)]
    return _child([*command, "--threads", str(bench.threads)])


def _child(command: list[str]) -> dict[str, Any]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "process_s": time.perf_counter() - began,
        "process_cpu_s": cpu,
    }


def _timed(run: candidates.Candidate) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--texts", type=int, default=400, help="for the forward pass alone")
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="in the forward pass also OpenVINO and the reference's other settings",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.0, help="of work at Lading's float32 rate, for the job")
    parser.add_argument("--job-rounds", type=int, default=1)
    parser.add_argument("--budget", type=int, default=4096, help="tokens per packed batch")
    parser.add_argument("--model", type=Path, help="a BERT-like encoder's folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--quick", action="store_true", help="small: to try the script, not for figures")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    wanted = parser.parse_args()
    if wanted.quick:
        wanted.texts, wanted.rounds, wanted.minutes = 48, 1, 0.05
    # Before the libraries that read them are loaded; children inherit them.
    threads = {name: str(wanted.threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(threads, TOKENIZERS_PARALLELISM="false" if wanted.threads == 1 else "true")
    candidates.hush()
    model = wanted.model or candidates.minilm()
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    sizes = gemm.Sizes(config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])
    bench = Bench(Report(wanted.json), model, sizes, wanted.threads, wanted.budget)
    parts = wanted.part or PARTS
    measure_peaks(bench)
    if "gemm" in parts:
        show_peaks(bench)
    if "forward" in parts:
        forward(bench, wanted.texts, wanted.rounds, wanted.peers)
    if "job" in parts:
        with tempfile.TemporaryDirectory() as folder:
            job(bench, wanted.minutes, wanted.job_rounds, Path(folder))


if __name__ == "__main__":
    main()
