"""What one message, lease, result or dead letter takes in Redis' memory: MEMORY USAGE over some thousands of real ones.

    python benchmarks/redis_bytes.py [--json]

A private Redis server is started; messages are made and moved by the same code as in production. docs/redis.md sizes Redis by these
figures, docs/scale.md reckons with them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import redis

from benchmarks.report import Report
from lading.pipelines import wire
from lading.schedulers import results
from lading.schedulers.connection import Broker
from lading.schedulers.messages import Request, ShardPointer, request_message, shard_message
from tests.redis_server import RedisServer

SHARDS, REQUESTS = "lading.cpu.shards", "lading.cpu.requests"
COUNT = 5000  # of each kind: nodes of a list and the table of a hash have their usual fill
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXT = "How is a file opened for reading, and closed again when an error ends the block that it is read in? " * 2
SMALL, LARGE = (TEXT[:100],), (TEXT,) * 64  # a query; some paragraphs


def measured(broker: Broker) -> dict[str, float]:
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    report = Report(parser.parse_args(arguments).json)
    with tempfile.TemporaryDirectory() as scratch:
        server = RedisServer(Path(scratch))
        try:
            client = redis.Redis(port=server.port)
            report.title(f"Redis {client.info('server')['redis_version']}, {client.info('memory')['mem_allocator']}")  # pyright: ignore
            for name, size in measured(Broker.connect(server.url)).items():
                report.line(name, size, "bytes")
        finally:
            server.close()


if __name__ == "__main__":
    main()
