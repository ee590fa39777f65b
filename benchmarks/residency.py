"""Five models on a device that holds two: what swapping costs, and what it would cost without affinity.

    python benchmarks/residency.py [--part mixed|swap] [--size base|small] [--device cpu|cuda] [--requests 5000] [--rows 300] [--rounds N] [--quick] [--json]

A dense, a sparse, a multi-vector encoder, a cross-encoder and a token classifier (random weights, 12 layers of 768 unless --size
small), on the CPU device, whose byte budget is enforced as a GPU's is, and whose host memory is a copy as a GPU's is. mixed: a
stream of requests for all five in random order and a corpus job for each of three, all queued before the clock starts, through
Redis and one worker. Against: the same work model by model with all five loaded. Every model has been loaded once before, so that
its copy is in host memory. swap: how long a model takes to be ready from host memory and from disk, and to answer its first row.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa

from benchmarks.corpus import natural_lengths, texts_of_lengths
from benchmarks.queueing import model_folder
from benchmarks.report import Report
from tests.redis_server import RedisServer

SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
AIM_SWAPPING, AIM_RESIDENT = 0.7, 0.9


@dataclasses.dataclass(frozen=True, slots=True)
class Five:
    """A model, and what is asked of it."""

    name: str
    verb: str
    folder: Path
    job: bool = False  # whether a corpus job runs on it too

    def inputs(self, texts: Sequence[str]) -> list[Any]:
        return [[one, texts[0]] for one in texts] if self.verb == "score" else list(texts)


def make_models(place: Path, size: str) -> list[Five]:
    """All five in the layouts that their libraries save, random weights, the tokenizer of all-MiniLM-L6-v2."""
    import torch
    import transformers
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("minilm", place))
    width = SIZES[size]["hidden_size"]

    def backbone(name: str, auto_class: Any, **more: Any) -> Path:
        torch.manual_seed(len(name))
        config = transformers.BertConfig(vocab_size=len(tokenizer), **SIZES[size], **more)
        auto_class.from_config(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        return place / name

    auto = transformers
    dense = Transformer(str(backbone("dense-backbone", auto.AutoModel)))
    SentenceTransformer(modules=[dense, Pooling(width), Normalize()]).save(str(place / "dense"))
    sparse = Transformer(str(backbone("sparse-backbone", auto.AutoModelForMaskedLM)), transformer_task="fill-mask")
    SparseEncoder(modules=[sparse, SpladePooling("max")]).save(str(place / "sparse"))
    tokens = Transformer(str(backbone("multi-backbone", auto.AutoModel)))
    projected = Dense(
        width, 128, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"
    )
    late = [tokens, projected, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=late).save(str(place / "multi"))
    CrossEncoder(str(backbone("cross-backbone", auto.AutoModelForSequenceClassification, num_labels=1))).save(
        str(place / "cross")
    )
    labels = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
    named = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    entities = backbone("entities", auto.AutoModelForTokenClassification, **named)
    return [
        Five("dense", "encode", place / "dense", job=True),
        Five("sparse", "encode", place / "sparse", job=True),
        Five("multi-vector", "encode", place / "multi"),
        Five("cross-encoder", "score", place / "cross"),
        Five("entities", "extract", entities, job=True),
    ]


class Bench:
    """One worker in this process, and what it is given to do."""

    def __init__(self, scratch: Path, server: RedisServer, models: list[Five], given: argparse.Namespace) -> None:
        self.scratch, self.server, self.models, self.rows = scratch, server, models, given.rows
        self.device, requests, rows = given.device, given.requests, given.rows
        draw = random.Random(0)
        texts = texts_of_lengths([draw.randint(4, 14) for _ in range(requests)])
        self.asked = [(models[number % len(models)], text) for number, text in enumerate(texts)]
        draw.shuffle(self.asked)
        self.corpus = scratch / "corpus.jsonl"
        bodies = texts_of_lengths(natural_lengths(rows, seed=1), seed=1)
        lines = [json.dumps({"id": f"d{number}", "text": body}) for number, body in enumerate(bodies)]
        self.corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @contextmanager
    def worker(self, budget: int, *, turns: bool = False) -> Iterator[Any]:
        """A started worker that has had every model on its device once. `turns`: one batch of a model, then the next one's."""
        from lading.config.settings import load as load_settings
        from lading.pipelines.registry import Registry
        from lading.schedulers import pools
        from lading.schedulers.bodies import RequestOptions
        from lading.schedulers.connection import Broker
        from lading.schedulers.pools import Preload
        from lading.workers.worker import Worker

        gc.collect()  # the models of the worker before
        shutil.rmtree(self.scratch / "jobs", ignore_errors=True)
        settings = load_settings()
        there = next(one for one in pools.load({}).values() if one.device == self.device)
        pool = dataclasses.replace(there, memory_bytes=1 << 40, host_bytes=1 << 40)
        broker = Broker.connect(settings.broker_url)
        broker.client.flushall()
        worker = Worker(pool, settings, broker, Registry(settings.jobs))
        worker.residents.policy.device_bytes = budget
        for one in self.models:
            worker.models.preload(Preload(one.verb, str(one.folder), RequestOptions()))
        residents = worker.residents
        residents.let_go(*residents.policy.models)  # all have a copy in host memory now
        if not budget:
            for one in self.models:
                worker.models.preload(Preload(one.verb, str(one.folder), RequestOptions()))
        if turns:
            take_turns(residents)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop(60.0, threading.Event())

    def run(self, worker: Any, models: Sequence[Five]) -> float:
        """Seconds for all the work of these models, queued at once."""
        from lading.config.settings import load as load_settings
        from lading.pipelines.job import draft
        from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
        from lading.pipelines.submit import Queues, submit
        from lading.schedulers.messages import Request, request_message

        asked = [(one, text) for one, text in self.asked if one in models]
        messages = [
            request_message(
                Request(one.verb, str(one.folder), one.inputs([text])), id=uuid.uuid4().hex, now=time.time()
            )
            for one, text in asked
        ]
        answered, told = [0], worker.answers.tell

        def telling(answers: Any) -> None:
            answered[0] += len(answers)
            told(answers)

        worker.answers.tell = telling
        drafts = [
            draft(
                JobSpec(
                    source=SourceSpec(paths=(str(self.corpus),)),
                    steps=(StepSpec(verb=one.verb, model=str(one.folder), text=("text",)),),
                    policy=PolicySpec(shard_rows=64),
                    sink=SinkSpec(to=f"parquet://{self.scratch}/out/{uuid.uuid4().hex}"),
                )
            )
            for one in models
            if one.job
        ]
        queues = Queues.of(load_settings())
        began = time.perf_counter()
        jobs = [submit(one, queues) for one in drafts]
        for start in range(0, len(messages), 500):
            worker.requests.send(messages[start : start + 500])
        while answered[0] < len(messages) or not all(finished(one) for one in jobs):
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        worker.answers.tell = told
        assert answered[0] == len(messages), (answered[0], len(messages))
        for one in jobs:
            report = json.loads((Path(one.manifest) / "closed.json").read_text())["report"]
            assert report["done"] == self.rows, report
        return seconds


def finished(job: Any) -> bool:
    return (Path(job.manifest) / "closed.json").exists()


def take_turns(residents: Any) -> None:
    """No affinity: a batch of each model that has work, one after the other, whatever is loaded."""
    hold, last = residents.hold, [""]
    residents.policy.patience_s = 0.0

    def in_turn(adapter: Any) -> bool:
        order = sorted(residents.policy.busy)
        later = [key for key in order if key > last[0]]
        if adapter.weights != (later or order)[0] or not hold(adapter):
            return False
        last[0] = adapter.weights
        return True

    residents.hold = in_turn


def mixed(report: Report, bench: Bench, rounds: int) -> None:
    times: dict[str, list[float]] = {"resident": [], "mixed": [], "two": [], "turns": []}
    found: dict[str, Any] = {}
    report.title(
        f"{len(bench.asked):,} requests and {sum(one.job for one in bench.models)} jobs of {bench.rows} rows, five models"
    )
    for number in range(rounds):
        with bench.worker(0) as worker:
            sizes = sorted((one["bytes"] for one in worker.residents.report()["models"]), reverse=True)
            working = max(one["working_bytes"] for one in worker.residents.report()["models"])
            times["resident"].append(sum(bench.run(worker, [one]) for one in bench.models))
            times["mixed"].append(bench.run(worker, bench.models))
        budget = sum(sizes[:2]) + working
        assert budget < sum(sizes[-3:]) + working, "three of them would fit"
        for name in ("two", "turns")[: 1 if number else 2]:
            with bench.worker(budget, turns=name == "turns") as worker:
                before = worker.residents.report()
                times[name].append(bench.run(worker, bench.models))
                after = worker.residents.report()
                found[name] = {
                    "swaps": sum(after["loads"].values()) - sum(before["loads"].values()),
                    "batches": after["batches"] - before["batches"],
                    "load_s": sum(after["load_s"].values()) - sum(before["load_s"].values()),
                }
                assert after["resident_bytes"] <= budget
    best = {name: statistics.median(some) for name, some in times.items()}
    if not report.as_json:
        print("  seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in best.items()))
        print(
            f"  budget {budget:,} bytes; models "
            + ", ".join(f"{size:,}" for size in sizes)
            + f"; batches take {working:,}"
        )
    report.line("mixed_under_two_vs_resident", best["resident"] / best["two"], "ratio", AIM_SWAPPING)
    report.line("mixed_all_resident_vs_one_by_one", best["resident"] / best["mixed"], "ratio", AIM_RESIDENT)
    for name, label in (("two", ""), ("turns", "round_robin_")):
        one = found[name]
        report.line(f"{label}swaps", one["swaps"], "swaps", note=f"{one['load_s']:.1f} s of moving, beside the work")
        report.line(
            f"{label}hit_rate", 1 - one["swaps"] / one["batches"], "of batches", note=f"{one['batches']} batches"
        )
    report.line("round_robin_vs_resident", best["resident"] / best["turns"], "ratio", best["resident"] / best["two"])


def bus(device: str) -> float:
    """GB/s of a copy from pinned host memory to the device, the best of some; 0 where there is no bus between them."""
    import torch

    if device == "cpu":
        return 0.0
    source, best = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True), 0.0
    target = torch.empty_like(source, device=device)
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, len(source) / (time.perf_counter() - began) / 1e9)
    return best


def swap(report: Report, models: list[Five], rounds: int, device: str) -> None:
    """From idle to the first row, by where the model's weights were."""
    from lading.config.checkpoint import locate, resolve
    from lading.workers.residency import Residency
    from lading.workers.residents import Residents

    report.title(f"from idle to the first row, {device}")
    highest = bus(device)
    residents = Residents(device, 1, Residency(0, 1 << 40), batch_tokens=4096)
    for one in models:
        recipe = resolve(locate(str(one.folder)), task=one.verb)
        adapter: Any = residents.get(recipe, one.folder)
        row = adapter.prepare([pa.array(["a row"])] * adapter.inputs)

        def first_row(adapter: Any = adapter, row: Any = row) -> float:
            began = time.perf_counter()
            with residents.holding(adapter):
                adapter.run([(row, np.arange(1))])
            return time.perf_counter() - began

        first_row()
        model = residents.policy.models[adapter.weights]
        times: dict[str, list[float]] = {"host": [], "disk": []}
        moves: dict[str, list[float]] = {"host": [], "disk": []}
        for _ in range(rounds):
            for tier, room in (("host", 1 << 40), ("disk", 0)):
                residents.policy.host_bytes = room
                model.copied = model.copied and room > 0
                residents.let_go(adapter.weights)
                times[tier].append(first_row())
                moves[tier].append(model.took)
        size = f"{model.weights / 1e6:,.0f} MB"
        for tier in ("host", "disk"):
            p50, p95 = (float(np.quantile(times[tier], at)) for at in (0.5, 0.95))
            speed = model.weights / statistics.median(moves[tier]) / 1e9
            note = f"p95 {p95:.3f} s, {size}, {speed:.2f} GB/s"
            report.line(f"first_row_from_{tier}: {one.name}", p50, "s", note=note)
            if tier == "host" and highest:
                report.line(f"swap_of_bus: {one.name}", speed / highest, "ratio", 0.6, f"bus {highest:.1f} GB/s")
    residents.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("mixed", "swap"))
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=300, help="of each corpus job")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small models and little work, to try the script")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.quick:
        given.size, given.requests, given.rows = "small", 400, 40
    report = Report(given.json)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "redis").mkdir()
        server = RedisServer(place / "redis")
        os.environ |= {
            "LADING_BROKER_URL": server.url,
            "LADING_JOBS": f"{place}/jobs",
            "LADING_ROOTS": "/",
            "TOKENIZERS_PARALLELISM": "false",
        }
        models = make_models(place, given.size)
        parts: dict[str, Callable[[], None]] = {
            "mixed": lambda: mixed(report, Bench(place, server, models, given), given.rounds),
            "swap": lambda: swap(report, models, max(10 if not given.quick else 3, given.rounds), given.device),
        }
        for name, part in parts.items():
            if given.part in (None, name):
                part()
        server.close()


if __name__ == "__main__":
    main()
