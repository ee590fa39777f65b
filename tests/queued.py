"""What tests of submitted jobs share: jobs of many tiny shards, and a worker that computes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lading.pipelines.job import draft
from lading.pipelines.open_job import Job
from lading.pipelines.records import Receipt, Reject
from lading.pipelines.registry import Registry
from lading.pipelines.spec import JobSpec, PolicySpec, QueueSpec, SinkSpec, SourceSpec, StepSpec
from lading.pipelines.submit import Queues, Submitted, submit
from lading.pipelines.sweep import settle
from lading.schedulers.connection import Broker
from lading.schedulers.messages import ShardPointer, decode
from lading.schedulers.pools import Pool, Pools
from lading.schedulers.queues import Lease

ROWS = 2  # of a shard
LEASE_S = 60.0


def pools(**changes: int) -> Pools:
    """One pool whose window is 8 unless `changes` say otherwise."""
    fields = {"max_workers": 2, "pull_shards": 2, **changes}
    return {"cpu": Pool(name="cpu", device="cpu", memory_bytes=1 << 32, **fields)}


def queues(url: str, root: Path | str, **changes: int) -> Queues:
    return Queues(Broker.connect(url), Registry(f"{root}/registry"), pools(**changes), LEASE_S)


def job_spec(
    folder: Path, model: Path, name: str, shards: int, *, priority: int = 0, kind: str = "parquet", **policy: int
) -> JobSpec:
    """A job of so many shards of ROWS rows, which is another one for another name."""
    path = folder / f"{name}.parquet"
    if not path.exists():
        pq.write_table(pa.table({"text": [f"{name} {row}" for row in range(shards * ROWS)]}), path)
    return JobSpec(
        source=SourceSpec(paths=(str(path),)),
        steps=(StepSpec(verb="encode", model=str(model), text=("text",)),),
        sink=SinkSpec(to=f"{kind}://{folder}/out/{name}"),
        policy=PolicySpec(shard_rows=ROWS, **policy),
        queue=QueueSpec(priority=priority),
    )


def submitted(to: Queues, spec: JobSpec) -> Submitted:
    return submit(draft(spec), to)


def pull(at: Queues, most: int = 100) -> list[tuple[Lease, ShardPointer]]:
    """Take what waits in the pool's queue of shards."""
    leases = at.broker.queue("lading.cpu.shards").pull(most, 1 << 30)
    found: list[tuple[Lease, ShardPointer]] = []
    for lease in leases:
        pointer = decode(lease.raw).body
        assert isinstance(pointer, ShardPointer)
        found.append((lease, pointer))
    return found


def publish(job: Job, shard: int, generation: int = 0, *, failed: str = "", rejects: Iterable[int] = ()) -> Receipt:
    """Give a shard its marker: rows of zeros, the rejected ordinals left out, or a failure."""
    work = job.manifest.pending(shard, generation)
    assert work is not None
    ordinals = [int(one) for one in (range(ROWS) if work.ordinals is None else work.ordinals)]
    bad = [one for one in ordinals if one in set(rejects)]
    good = [one for one in ordinals if one not in bad]
    receipt = Receipt(*job.attempt(work), rows_in=len(ordinals), finished=1.0)
    if failed:
        return job.manifest.publish(dataclasses.replace(receipt, status="failed", reason=failed))
    ids = [f"{shard}-{one}" for one in good]
    vectors = np.zeros((len(good), job.recipe.dims), np.float32)
    columns = {"id": ids, "text": ids, "vector": list(vectors)}
    table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in job.schema}, schema=job.schema)
    receipt = dataclasses.replace(
        receipt,
        rows_done=len(good),
        rows_out=len(good),
        rejected=len(bad),
        rejects={"failed": len(bad)} if bad else {},
    )
    rejected = [Reject(shard, one, "in", one, None, "failed", "why") for one in bad]
    return job.publish(job.attempt(work), dataclasses.replace(receipt), table, rejected, None)


def work(at: Queues, most: int = 100, *, fold: bool = True) -> list[ShardPointer]:
    """Do what waits as a worker does: publish, acknowledge, fold."""
    done: list[ShardPointer] = []
    opened: dict[str, Job] = {}
    for lease, pointer in pull(at, most):
        job = opened.setdefault(pointer.job, at.registry.find(pointer.job).open())
        if job.manifest.pending(pointer.shard, pointer.generation) is not None:
            publish(job, pointer.shard, pointer.generation)
            done.append(pointer)
        at.broker.queue("lading.cpu.shards").ack([lease])
    if fold:
        for job in opened.values():
            settle(job, at.registry, at.broker)
    return done
