"""Runs small synthetic jobs over a sink in processes that may be killed or frozen. Used by test_exactly_once.py.

Run as a script it is the warm parent: it has imported everything and computed nothing (Lance does not survive a
fork once it has been used), reads one JSON request per line, and forks a child for each job asked for.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import s3fs  # noqa: F401  as lance_sink below

from lading.pipelines import lance_sink, optimize, parquet_sink  # noqa: F401  imported here so that children need not
from lading.pipelines.lance_commit import lance
from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from lading.pipelines.plan import Plan
from lading.pipelines.records import Input, Receipt, Reject, Shard
from lading.pipelines.sinks import open_sink

WIDTH = 4
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), WIDTH)),
    ]
)
FOREIGN = "foreign-"


def rows_of(ids: list[str], salt: int = 0) -> pa.Table:
    """One row per id, its vector a function of the id and `salt`."""
    values = np.array([[hash_of(id) + salt + place for place in range(WIDTH)] for id in ids], np.float32).reshape(-1)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), type=SCHEMA.field("vector").type)
    return pa.Table.from_arrays([pa.array(ids, pa.string()), vectors], schema=SCHEMA)


def hash_of(id: str) -> int:
    return sum(byte * (place + 1) for place, byte in enumerate(id.encode())) % 1000


def is_rejected(shard: int, ordinal: int) -> bool:
    """Every fifth row, and all of shard 2."""
    return shard == 2 or ordinal % 5 == 3


def plan(job: str, shards: int, rows: int, on_existing: str = "refuse") -> Plan:
    return Plan(
        job=job,
        spec={},
        format="parquet",
        inputs=[Input("corpus.parquet", 1, "1")],
        shards=[Shard(number, 0, number * rows, (number + 1) * rows, rows) for number in range(shards)],
        duplicates={},
        on_existing=on_existing,
        recipe={},
        model={},
        source="",
        schema=base64.b64encode(SCHEMA.serialize().to_pybytes()).decode(),
        created=0.0,
    )


def run_job(
    url: str, *, job: str = "job", shards: int = 4, rows: int = 10, on_existing: str = "refuse", salt: int = 0
) -> Manifest:
    """What a worker does, with a model that computes `hash_of`: register, stage, publish, fold, close."""
    output = output_paths(url)
    sink = open_sink(output)
    manifest = Manifest.create(output, plan(job, shards, rows, on_existing))
    if manifest.closed() is None:
        sink.register(job, SCHEMA, on_existing=on_existing)
        for work in manifest.work():
            if manifest.published(work.shard.number, work.generation):
                continue
            _run_shard(manifest, sink, work.shard.number, work.generation, rows, on_existing, salt)
            sink.fold(job, manifest.finished())
        sink.fold(job, manifest.finished())
        manifest.close({"rows": shards * rows}, folded=sink.folded(job))
    sink.unregister(job)
    return manifest


def _run_shard(
    manifest: Manifest, sink: Any, shard: int, generation: int, rows: int, on_existing: str, salt: int
) -> None:
    job, attempt = manifest.plan.job, os.urandom(8).hex()
    good = [ordinal for ordinal in range(rows) if not is_rejected(shard, ordinal)]
    bad = [
        Reject(shard, ordinal, "corpus.parquet", ordinal, id_of(shard, ordinal), "empty-text", "")
        for ordinal in range(rows)
        if is_rejected(shard, ordinal)
    ]
    replaces = pa.array([id_of(shard, ordinal) for ordinal in range(rows)]) if on_existing == "replace" else None
    files = sink.stage(
        job, shard, generation, attempt, rows_of([id_of(shard, one) for one in good], salt), replaces=replaces
    )
    name = manifest.write_rejects(shard, generation, attempt, bad)
    receipt = Receipt(
        job=job,
        shard=shard,
        generation=generation,
        attempt=attempt,
        rows_in=rows,
        rows_done=len(good),
        rows_out=len(good),
        rejected=len(bad),
        rejects={"empty-text": len(bad)} if bad else {},
        rejects_file=name,
        files=files,
    )
    if manifest.publish(receipt).attempt != attempt:
        sink.discard(files)


def id_of(shard: int, ordinal: int) -> str:
    return f"doc-{shard}-{ordinal}"


def expected(shards: int, rows: int, salt: int = 0) -> dict[str, list[float]]:
    ids = [
        id_of(shard, ordinal) for shard in range(shards) for ordinal in range(rows) if not is_rejected(shard, ordinal)
    ]
    return dict(zip(ids, rows_of(ids, salt)["vector"].to_pylist(), strict=True))


def add_foreign(url: str, start: int, count: int) -> None:
    """What another application does with the same table: plain appends, tried again when it loses."""
    ids = [f"{FOREIGN}{number}" for number in range(start, start + count)]
    lance.write_dataset(rows_of(ids), output_paths(url).data, mode="append")


class Crew:
    """The warm parent, seen from a test: starts jobs, each in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, action: str, failpoint: str = "", **arguments: Any) -> int:
        """The pid of a child that runs `action` (job | foreign | optimize)."""
        return self._ask({"action": action, "failpoint": failpoint, "arguments": arguments})

    def wait(self, pid: int) -> int:
        """Its exit status, minus the signal's number if one ended it."""
        return self._ask({"action": "wait", "pid": pid})

    def wait_stopped(self, pid: int) -> int:
        """The signal that stopped it, or 0 if it ended instead."""
        return self._ask({"action": "wait-stopped", "pid": pid})

    def run(self, action: str, failpoint: str = "", **arguments: Any) -> int:
        return self.wait(self.start(action, failpoint, **arguments))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _child(request: dict[str, Any]) -> None:
    os.environ["LADING_FAILPOINT"] = request["failpoint"]
    actions = {"job": run_job, "foreign": add_foreign, "optimize": optimize.optimize}
    actions[request["action"]](**request["arguments"])


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["action"] == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])
        elif request["action"] == "wait-stopped":
            status = os.waitpid(request["pid"], os.WUNTRACED)[1]
            answer = int(os.WSTOPSIG(status)) if os.WIFSTOPPED(status) else 0
        else:
            answer = os.fork()
            if answer == 0:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                status = 1
                try:
                    _child(request)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
        print(answer, flush=True)


if __name__ == "__main__":
    _serve()
