"""The verbs for submitted jobs, over a real Redis: what they print, what they change, and how they end."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lading.cli import main
from lading.config.errors import UsageError
from lading.pipelines.job import draft, start
from lading.pipelines.open_job import Job
from lading.pipelines.submit import Queues
from lading.schedulers import folds
from lading.schedulers.folds import FoldCosts
from lading.workers.run import run
from tests.queued import ROWS, job_spec, publish, pull, queues, submitted, work
from tests.redis_server import RedisServer


@pytest.fixture
def at(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queues:
    """One pool of processors, as the settings of this process say too."""
    (tmp_path / "config").mkdir()
    pool = "{device: cpu, memory_bytes: 4_000_000_000, max_workers: 2, pull_shards: 2}"
    (tmp_path / "config/pools.yaml").write_text(f"cpu: {pool}\n")
    for name, value in {
        "CONFIG_DIR": tmp_path / "config",
        "BROKER_URL": redis_server.url,
        "JOBS": tmp_path / "registry",
    }.items():
        monkeypatch.setenv(f"LADING_{name}", str(value))
    return queues(redis_server.url, tmp_path)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """Runs a command that must end with `code`; its standard output."""

    def run_verb(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(list(command)) == code
        return capsys.readouterr().out

    return run_verb


def as_json(text: str) -> Any:
    return json.loads(text)


def open_job(at: Queues, job: str) -> Job:
    return at.registry.find(job).open()


def drop(at: Queues) -> None:
    """Take what waits off the queue, as done."""
    at.broker.queue("lading.cpu.shards").ack([lease for lease, _ in pull(at)])


def test_submit_says_where_the_job_is(at: Queues, tmp_path: Path, tiny_encoder: Path, said):
    """A job file is queued with the pool and priority that it names or that were given; the id and the manifest's place are printed."""
    job_spec(tmp_path, tiny_encoder, "a", 20)
    (tmp_path / "job.yaml").write_text(
        json.dumps(
            {
                "source": {"path": f"{tmp_path}/a.parquet"},
                "steps": [{"encode": {"text": "text", "model": str(tiny_encoder)}}],
                "sink": {"to": f"parquet://{tmp_path}/out/a"},
                "policy": {"shard_rows": ROWS},
                "queue": {"pool": "cpu", "priority": 2},
            }
        )
    )
    out = said("submit", f"{tmp_path}/job.yaml")
    (entry,) = at.registry.list_open()
    assert out.splitlines()[0] == f"submitted: job {entry.job}, 8 of 20 shards sent to pool cpu"
    assert f"manifest: {tmp_path}/out/a.lading/jobs/{entry.job}" in out
    assert (entry.pool, entry.priority) == ("cpu", 2)
    again = as_json(said("run", f"{tmp_path}/job.yaml", "--submit", "--priority", "7", "--json"))
    assert (again["job"], again["priority"], at.registry.find(entry.job).priority) == (entry.job, 7, 7)


def test_a_quick_verb_submits_the_same_job_that_it_runs(at: Queues, tmp_path: Path, tiny_encoder: Path, said):
    """--submit changes where a job is done, not which job it is."""
    spec = job_spec(tmp_path, tiny_encoder, "a", 4)
    encode = ["encode", f"{tmp_path}/a.parquet", "--model", str(tiny_encoder), "--to", spec.sink.to, "--json"]
    encode += ["--shard-rows", str(ROWS)]
    queued = as_json(said(*encode, "--submit"))
    done = as_json(said(*encode))
    assert (done["job"], done["state"]) == (queued["job"], "finished")
    assert as_json(said(*encode, "--submit"))["state"] == "nothing to do"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pool", "gpu"], "there is no pool 'gpu'"),
        (["--device", "cuda"], "no pool can take"),
        (["--threads", "2"], "--threads is for a run here"),
    ],
)
def test_what_cannot_be_submitted_is_refused(
    at: Queues, tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    """Exit code 2 before anything is written, with what to change."""
    job_spec(tmp_path, tiny_encoder, "a", 4)
    encode = ["encode", f"{tmp_path}/a.parquet", "--model", str(tiny_encoder), "--to", f"parquet://{tmp_path}/out"]
    assert main([*encode, "--submit", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broker_that_is_away_is_said(at: Queues, tmp_path: Path, tiny_encoder: Path, monkeypatch, capsys):
    """Exit code 3, nothing written, and the same command goes on later."""
    monkeypatch.setenv("LADING_BROKER_URL", "redis://127.0.0.1:1/0")
    job_spec(tmp_path, tiny_encoder, "a", 4)
    encode = ["encode", f"{tmp_path}/a.parquet", "--model", str(tiny_encoder), "--to", f"parquet://{tmp_path}/out"]
    assert main([*encode, "--submit"]) == 3
    assert "cannot reach the broker" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["status"]) == 0
    assert "cannot reach the broker" in capsys.readouterr().err


def test_the_table_of_jobs_and_pools(at: Queues, tmp_path: Path, tiny_encoder: Path, said):
    """Each job with its state and shards, each pool with what waits; a job whose folder is gone is named and hides nothing."""
    assert "no job was submitted here" in said("status")
    jobs = {name: submitted(at, job_spec(tmp_path, tiny_encoder, name, 4)) for name in ("a", "b", "c", "d")}
    opened = open_job(at, jobs["a"].job)
    publish(opened, 0)
    said("cancel", jobs["b"].job)
    for number in range(4):
        publish(open_job(at, jobs["c"].job), number, failed="gone" if number else "")
    os.rename(jobs["d"].manifest, f"{tmp_path}/away")
    found = as_json(said("status", "--json"))
    states = {line["job"]: (line["state"], line["shards_settled"], line["shards_total"]) for line in found["jobs"]}
    assert states == {
        jobs["a"].job: ("running", 1, 4),
        jobs["b"].job: ("cancelled", 0, 4),
        jobs["c"].job: ("unfinished", 4, 4),
        jobs["d"].job: ("unreachable", 0, 4),
    }
    (pool,) = found["pools"]
    assert (pool["pool"], pool["workers"], pool["left"], pool["in_flight"]) == ("cpu", 0, None, 0)
    text = said("status")
    assert f"{jobs['a'].job}  running     1 of 4 shards  cpu" in text
    assert "has no plan" in text
    assert "pool cpu (cpu): 0 workers, shards: 8 waiting, 0 in flight" in text


def test_a_job_is_named_by_its_id_or_its_output(at: Queues, tmp_path: Path, tiny_encoder: Path, said, capsys):
    """status and rejects take either; a word that is neither gets the nearest id."""
    done = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 2))
    publish(open_job(at, done.job), 0, rejects=[1])
    assert as_json(said("status", done.job, "--json")) == as_json(said("status", f"{tmp_path}/out/a", "--json"))
    assert as_json(said("status", done.job, "--json"))[0]["retryable"] == 1
    assert said("rejects", done.job) == said("rejects", f"{tmp_path}/out/a")
    for verb in ("status", "rejects", "watch", "retry", "cancel"):
        assert main([verb, done.job[:-1]]) == 2
        assert f"did you mean '{done.job}'" in capsys.readouterr().err


def test_failed_shards_are_retried(at: Queues, tmp_path: Path, tiny_encoder: Path, said):
    """retry opens a further generation of each failed shard and sends it; then the job can end."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 3)).job
    drop(at)
    for shard in range(3):
        publish(open_job(at, job), shard, failed="no such file" if shard else "")
    assert as_json(said("scheduler", "--once", "--json"))["ended"] == 0
    assert said("watch", job, code=3).startswith("unfinished: ")
    assert "2 failed shards and 0 rejected rows to be tried again, 2 shards sent" in said("retry", job)
    assert "nothing" not in said("retry", job)  # they are still to be done
    assert {(pointer.shard, pointer.generation) for pointer in work(at)} == {(1, 1), (2, 1)}
    assert said("watch", job, "--quiet") == ""
    assert said("retry", job) == f"job {job}: nothing to try again\n"


def test_a_running_scheduler_hears_of_a_retry(at: Queues, tmp_path: Path, tiny_encoder: Path, said):
    """What is opened again is sent by whoever sweeps, also by one that remembers the job as settled."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 20)).job
    drop(at)
    for shard in range(20):
        publish(open_job(at, job), shard, failed="gone")
    sweeps = at.sweeper()
    sweeps.sweep()
    assert as_json(said("retry", job, "--json"))["sent"] == 8
    drop(at)
    for shard in range(8):
        publish(open_job(at, job), shard, 1)
    swept = sweeps.sweep()
    assert swept is not None
    assert (swept.sent, swept.left) == (8, {"cpu": 12})


def test_rejects_are_retried_while_the_job_is_open(at: Queues, tmp_path: Path, tiny_encoder: Path, said):
    """A finished job with rows that may be saved is not closed; what a retry saves is added, and then it is."""
    done = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 2))
    drop(at)
    job = open_job(at, done.job)
    publish(job, 0)
    publish(job, 1, rejects=[1])
    assert as_json(said("scheduler", "--once", "--json"))["ended"] == 1
    assert job.manifest.closed() is None
    watched = as_json(said("watch", done.job, "--json"))
    assert (watched["state"], watched["retryable"], watched["rows_done"]) == ("finished", 1, 3)
    assert "1 row can be tried again: lading retry" in said("status", done.job)
    retried = as_json(said("retry", done.job, "--json"))
    assert (retried["state"], retried["rows"], retried["sent"]) == ("running", 1, 1)
    work(at)
    assert job.manifest.closed() is not None
    assert as_json(said("watch", done.job, "--json"))["rows_done"] == 4


def test_giving_up_closes_the_job(at: Queues, tmp_path: Path, tiny_encoder: Path, said, capsys):
    """--give-up ends a job that could be retried, and no other."""
    done = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 2))
    drop(at)
    job = open_job(at, done.job)
    publish(job, 1, rejects=[1])
    assert main(["retry", done.job, "--give-up"]) == 2
    assert "shards are still to be done" in capsys.readouterr().err
    publish(job, 0)
    assert said("retry", done.job, "--give-up") == f"job {done.job} is closed\n"
    assert job.manifest.closed() is not None
    assert said("retry", done.job) == f"job {done.job}: nothing to try again\n"


def test_a_local_job_can_be_retried_too(at: Queues, tmp_path: Path, tiny_encoder: Path, said, monkeypatch):
    """Of a job that was run and not submitted, the rows are opened, and its own command does them."""
    spec = job_spec(tmp_path, tiny_encoder, "a", 2)
    first = run(draft(spec), device="cpu", threads=1)
    assert first.state == "finished"
    again = job_spec(tmp_path, tiny_encoder, "b", 2)
    job = start(draft(again))
    publish(job, 0, rejects=[0])
    publish(job, 1)
    ended = run(draft(again), device="cpu", threads=1)
    assert (ended.state, ended.retryable, ended.rows_done) == ("finished", 1, 3)
    assert any("lading retry" in line for line in ended.lines())
    assert "repeat the command that made it" in said("retry", f"{tmp_path}/out/b")
    assert run(draft(again), device="cpu", threads=1).rows_done == 4
    assert job.manifest.closed() is not None


def test_cancelling_is_for_good(at: Queues, tmp_path: Path, tiny_encoder: Path, said, capsys):
    """Nothing more is sent, what is in view stays, and neither submit nor retry begins it again."""
    spec = job_spec(tmp_path, tiny_encoder, "a", 20)
    done = submitted(at, spec)
    work(at, 3)
    assert said("cancel", done.job) == f"job {done.job} is cancelled\n"
    assert said("cancel", done.job, "--json")
    swept = as_json(said("scheduler", "--once", "--json"))
    assert (swept["sent"], swept["left"]) == (0, {"cpu": 0})
    assert said("watch", done.job, code=3).startswith("cancelled: 6 of 40 rows")
    assert as_json(said("status", done.job, "--json"))[0]["state"] == "cancelled"
    assert main(["retry", done.job]) == 2
    assert "was cancelled" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"was cancelled; to do it after all, remove .*cancelled\.json"):
        submitted(at, spec)
    finished = submitted(at, job_spec(tmp_path, tiny_encoder, "b", 1)).job
    drop(at)
    publish(open_job(at, finished), 0)
    said("scheduler", "--once")
    assert main(["cancel", finished]) == 2


def test_watching_shows_the_job_until_its_end(at: Queues, tmp_path: Path, tiny_encoder: Path, said):
    """It returns when another process ends the job, with that job's summary."""
    job = submitted(at, job_spec(tmp_path, tiny_encoder, "a", 3)).job
    ended: list[Any] = []
    watching = threading.Thread(target=lambda: ended.append(_watch(at, job)))
    watching.start()
    work(at, 2)
    work(at)
    watching.join()
    (summary,) = ended
    assert (summary.state, summary.rows_done, summary.exit_code) == ("finished", 6, 0)
    assert (summary.folds, summary.conflicts) == (2, 0)
    assert summary.seconds["fold"] > 0
    assert f"  2 commits, 0 conflicts; {summary.seconds['fold']:.1f} s of all workers' time" in summary.lines()


def test_what_folds_cost_is_added_up_and_forgotten(at: Queues):
    """Over all who fold, a job each; nothing is known of others, and after some days of none."""
    folds.add(at.broker, "a", FoldCosts(1, 0, 0.25))
    folds.add(at.broker, "a", FoldCosts(0, 2, 0.5))
    assert folds.read(at.broker, "a") == FoldCosts(1, 2, 0.75)
    assert folds.read(at.broker, "b") == FoldCosts()
    assert 0 < at.broker.client.ttl(folds.key("a")) <= folds.KEPT_S


def _watch(at: Queues, job: str):
    from lading.workers.watching import watch

    return watch(at.registry, at.broker, job, threading.Event(), lambda _: None, pause_s=0.01, share=0.5)
