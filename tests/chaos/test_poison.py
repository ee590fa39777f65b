"""Rows, requests and models that kill the process: what is to blame is found, and nothing else suffers."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.pipelines.manifest import Manifest
from lading.pipelines.output import output_paths
from lading.pipelines.report import rejects
from lading.pipelines.spec import JobSpec, PolicySpec
from lading.pipelines.steering import retry
from lading.workers.app import DEFECT
from lading.workers.worker import HUNG_LEASES
from tests.chaos.conftest import Rigs
from tests.chaos.rig import LEASE_S, Tally
from tests.crash import jobs
from tests.zygote import Zygote

ROWS, KILLER = 1000, 617


def write_rows(folder: Path, word: str) -> Path:
    """A file of 1,000 good rows; one has the word in it that no other has."""
    folder.mkdir()
    bodies = [f"row {n} is good" for n in range(ROWS)]
    bodies[KILLER] = f"row {KILLER} has {word}"
    table = pa.table({"key": [f"k{n:04}" for n in range(ROWS)], "body": bodies, "year": pa.array(range(ROWS), pa.int32())})  # fmt: skip
    pq.write_table(table, folder / "rows.parquet")
    return folder


def one_shard(corpus: Path, model: Path, to: str) -> JobSpec:
    return dataclasses.replace(jobs.encode(corpus, model, to), policy=PolicySpec(shard_rows=ROWS))


@pytest.mark.parametrize("act", ["kills", pytest.param("hangs", marks=pytest.mark.chaos)])
def test_a_row_that_kills_is_rejected_and_its_neighbours_are_there(
    act: str, rigs: Rigs, zygote: Zygote, tiny_encoder: Path, tmp_path: Path
) -> None:
    """One shard of 1,000 rows, one of which kills or hangs whoever runs it: that one is rejected, 999 are in the table."""
    corpus, rig = write_rows(tmp_path / "in", "poison"), rigs(**{act: "poison"})
    rig.fleet.endings |= {DEFECT} if act == "hangs" else set()
    whole = one_shard(corpus, tiny_encoder, f"parquet://{tmp_path}/whole")
    zygote.finish(whole)
    spec = one_shard(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job = rig.submit(spec)
    rig.finish(job)
    (killed,) = rejects(spec.sink.to)
    assert (killed.id, killed.code) == (f"k{KILLER:04}", "killed")
    ours, theirs = jobs.outcome(spec.sink.to), jobs.outcome(whole.sink.to)
    others = np.arange(ROWS) != KILLER
    assert ours.table.equals(theirs.table.filter(pa.array(others)))
    np.testing.assert_allclose(ours.vectors, theirs.vectors[others], rtol=0, atol=1e-6)
    totals = Manifest.open(output_paths(spec.sink.to), job).totals()
    assert (totals.rows_in, totals.done, totals.rejected) == (ROWS, ROWS - 1, 1)
    tally = Tally(ROWS, 0, 0, rig.repeats(ROWS - 1), rig.fleet.deaths.total())
    rig.tell(f"a row of 1,000 that {act}", tally, "that one rejected")
    rig.check_quiet()


def test_a_request_that_kills_goes_to_the_dead_letters_and_its_neighbours_are_answered(
    rigs: Rigs, tiny_encoder: Path
) -> None:
    """Its client is told, its message is kept with the reason, and everybody else has an answer."""
    rig = rigs(kills="poison")
    asked = [rig.ask(tiny_encoder, f"good {n}") for n in range(10)]
    killer = rig.ask(tiny_encoder, "this is poison")
    asked += [rig.ask(tiny_encoder, f"good {n}") for n in range(10, 20)]
    rig.until(lambda: rig.answer(killer) and all(map(rig.answer, asked)))
    rig.tell("a request that kills", Tally(faults=rig.fleet.deaths.total()), f"{len(asked)} neighbours answered")
    assert {rig.answer(id)["status"] for id in asked} == {"SUCCESS"}
    assert rig.answer(killer)["status"] == "FAILURE"
    assert "processes died" in rig.answer(killer)["result"]["exc_message"][0]
    rig.until(rig.settled)
    (letter,) = rig.requests.dead()
    assert "processes died" in letter.reason
    assert rig.requests.drop([letter]) == 1
    rig.check_quiet()


def test_a_model_that_kills_while_it_is_loaded_fails_the_shards_and_blames_no_row(
    rigs: Rigs, corpus: Path, tiny_encoder: Path, undisturbed: jobs.Undisturbed, tmp_path: Path
) -> None:
    """Three deaths while loading fail the shards with that reason; mended and retried, the job ends as if nothing had been."""
    deadly = tmp_path / "deadly"
    deadly.touch()
    rig = rigs(dies_loading=str(deadly))
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job = rig.submit(spec)
    manifest = Manifest.open(output_paths(spec.sink.to), job)
    rig.until(lambda: manifest.totals().shards_failed == manifest.totals().shards)
    deaths = rig.fleet.deaths.total()
    totals = manifest.totals()
    assert "died while they loaded the model" in totals.failure
    assert (totals.done, totals.rejected) == (0, 0)
    deadly.unlink()
    retry(rig.queues, job)
    rig.finish(job)
    tally = rig.check_rows(spec, job, corpus, undisturbed(corpus), faults=deaths)
    rig.tell("a model that kills while it is loaded", tally, "then mended and retried")
    rig.check_quiet()


def test_a_worker_that_hangs_loses_its_leases_and_ends(
    rigs: Rigs, zygote: Zygote, tiny_encoder: Path, tmp_path: Path
) -> None:
    """No progress, no lease: others do its shards while it lives; after some leases it gives up, and is started again."""
    corpus, hung = jobs.write_corpus(tmp_path / "in", shards=12, seed=1), tmp_path / "hung"
    word = pq.read_table(corpus)["body"].to_pylist()[0].split()[0]
    rig = rigs(hangs=word, hung=str(hung))
    rig.fleet.endings |= {DEFECT}
    whole = jobs.encode(corpus, tiny_encoder, f"parquet://{tmp_path}/whole")
    zygote.finish(whole, batch_tokens=jobs.BATCH_TOKENS)
    spec = jobs.encode(corpus, tiny_encoder, f"lancedb://{rig.root}/out/docs")
    job = rig.submit(spec)
    rig.finish(job)
    pid = int(hung.read_text())
    rig.until(lambda: pid not in {worker.child.pid for worker in rig.fleet.workers})
    assert f"the device hangs: a batch has not ended for {HUNG_LEASES * LEASE_S:.0f} s" in rig.fleet.said()
    rig.tell("a worker that hangs", rig.check_rows(spec, job, corpus, jobs.outcome(whole.sink.to), faults=1))
    rig.check_quiet()


def test_a_request_on_which_the_device_hangs_after_a_rest_ends_the_worker(
    rigs: Rigs, tiny_encoder: Path, tmp_path: Path
) -> None:
    """That nothing moved while nobody asked counts neither for nor against it; another worker answers."""
    hung = tmp_path / "hung"
    rig = rigs(workers=2, hangs="slow", hung=str(hung))
    rig.fleet.endings |= {DEFECT}
    first = rig.ask(tiny_encoder, "a quick one")
    rig.until(lambda: rig.answer(first))
    begun = time.monotonic()
    rig.until(lambda: time.monotonic() - begun > (HUNG_LEASES + 1) * LEASE_S)
    asked = rig.ask(tiny_encoder, "a slow one")
    rig.until(lambda: rig.answer(asked))
    assert rig.answer(asked)["status"] == "SUCCESS"
    pid = int(hung.read_text())
    rig.until(lambda: pid not in {worker.child.pid for worker in rig.fleet.workers})
    assert "the device hangs" in rig.fleet.said()
    assert rig.fleet.deaths.total() == 1
    rig.tell("a request that hangs", Tally(faults=1))
    rig.check_quiet()
