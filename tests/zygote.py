"""A warm parent for crash tests: it has imported everything, computed nothing, and forks a process for each job or worker asked for.

Neither Lance's runtime nor torch's threads live on in a forked child, so the parent must not start them; it
refuses to serve if something it imports does. A kill and a rerun then cost about a second, without an import of torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

from lading.cli import main
from lading.pipelines.spec import JobSpec, from_dict, to_dict

RUNTIMES = ("tokio", "lance", "rayon", "OMP")  # how threads are named that would be missing in a child
RUNNING = 1000  # answer of the parent: neither ended nor stopped


@dataclasses.dataclass(frozen=True, slots=True)
class Child:
    """One run of a job in a process of its own."""

    pid: int
    zygote: Zygote
    result: Path  # the summary as JSON; beside it, in `.log`, what the process said

    def wait(self) -> int:
        """Its exit code once it has ended, the negative signal if one killed it."""
        return self.zygote.ask({"wait": self.pid})

    def wait_stopped(self) -> bool:
        """Whether it stopped (SIGSTOP), once it has stopped or ended."""
        return self.zygote.ask({"wait": self.pid, "stopped": True}) == signal.SIGSTOP

    def poll(self) -> int | None:
        """Its exit code if it has ended by now; `wait` has nothing to wait for then."""
        code = self.zygote.ask({"wait": self.pid, "poll": True})
        return None if code == RUNNING else code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def freeze(self) -> bool:
        """Whether it was still there to be frozen. After False it is gone and `wait` has nothing to wait for."""
        os.kill(self.pid, signal.SIGSTOP)  # ended children stay zombies until waited for: the pid is theirs
        return self.wait_stopped()

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> int:
        """SIGKILL; its exit code, -SIGKILL unless it had ended before."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def summary(self) -> dict[str, Any]:
        return json.loads(self.result.read_text())

    def log(self) -> str:
        return self.result.with_suffix(".log").read_text()


class Zygote:
    """The warm parent, seen from a test. `environment` holds for all its children."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._started = 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # One thread each: tests run many at once, and OpenBLAS would start its own threads on import.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
        )

    def start(self, spec: JobSpec, failpoint: str = "", **options: Any) -> Child:
        """A process that does what `lading run` does; `options` are those of workers.run.run."""
        return self._start({"spec": to_dict(spec), "options": options}, failpoint)

    def command(self, *arguments: str, failpoint: str = "", **environment: str) -> Child:
        """A process that is the command `lading`; what it prints is in its log."""
        return self._start({"arguments": arguments, "environment": environment}, failpoint)

    def worker(self, *, failpoint: str = "", hooks: dict[str, Any] | None = None, **environment: str) -> Child:
        """A process that does what `celery -A lading.workers.app worker` does; `hooks` are those of tests/worker_hooks.py."""
        return self._start({"worker": hooks or {}, "environment": environment}, failpoint)

    def _start(self, request: dict[str, Any], failpoint: str) -> Child:
        self._started += 1
        result = self._folder / f"run-{self._started}.json"
        result.with_suffix(".log").touch()
        return Child(self.ask({**request, "failpoint": failpoint, "result": str(result)}), self, result)

    def finish(self, spec: JobSpec, **options: Any) -> dict[str, Any]:
        """The summary of an undisturbed run, which must end with exit code 0."""
        child = self.start(spec, **options)
        code = child.wait()
        assert code == 0, child.log()
        return child.summary()

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the warm parent has ended: what it said is above"
        return int(answer)

    def close(self) -> None:
        """End the parent and every child that still lives, frozen ones included."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# -- in the parent


def _warm() -> None:
    import celery.bin.celery  # noqa: F401
    import kombu.transport.redis  # noqa: F401
    import s3fs  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401  or each child imports it for itself
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import lading.adapters.encode
    import lading.pipelines.lance_sink
    import lading.pipelines.parquet_sink
    import lading.workers.run
    import lading.workers.worker  # noqa: F401

    get_checkpoint_conversion_mapping("bert")  # hundreds of patterns, compiled once
    task = Path("/proc/self/task")
    threads = [one.joinpath("comm").read_text() for one in task.iterdir()] if task.is_dir() else []
    started = [name for name in threads if name.startswith(RUNTIMES)]
    if started or threading.active_count() > 1:
        started += [one.name for one in threading.enumerate()[1:]]
        raise RuntimeError(f"importing started threads that children would lack: {started}")


def _serve() -> None:
    warnings.filterwarnings("ignore", message="lance is not fork-safe")  # it is until its first use, see above
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            options = (os.WUNTRACED if request.get("stopped") else 0) | (os.WNOHANG if request.get("poll") else 0)
            pid, status = os.waitpid(request["wait"], options)
            if not pid:
                answer = RUNNING
            elif os.WIFSTOPPED(status):
                answer = os.WSTOPSIG(status)
            else:
                answer = os.waitstatus_to_exitcode(status)
                children.remove(pid)
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
            children.add(answer)
        print(answer, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


# -- in a child


def _become(request: dict[str, Any]) -> None:
    """Run the job and end the process, with 1 if it raised."""
    result = Path(request["result"])
    with open(result.with_suffix(".log"), "wb") as log:
        os.dup2(log.fileno(), 1)  # the parent's standard output is its answers
        os.dup2(log.fileno(), 2)
    os.environ["LADING_FAILPOINT"] = request["failpoint"]
    os.environ.update(request.get("environment", {}))
    code = 1
    try:
        if "worker" in request:
            _work(request["worker"])
        code = main(request["arguments"]) if "arguments" in request else _run(request, result)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(hooks: dict[str, Any]) -> None:
    """Celery's own command; it ends the process."""
    from celery.bin.celery import main as celery_main
    from worker_hooks import install  # pyright: ignore[reportMissingImports]  beside this script

    install(hooks)
    sys.argv = ["celery", "-A", "lading.workers.app", "worker", "-l", "INFO", "--without-gossip", "--without-mingle"]
    celery_main()


def _run(request: dict[str, Any], result: Path) -> int:
    from lading.config.errors import LadingError
    from lading.pipelines.job import draft
    from lading.workers.run import run

    try:
        summary = run(draft(from_dict(request["spec"])), device="cpu", threads=1, **request["options"])
    except LadingError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    result.write_text(json.dumps(summary.to_dict()))
    return summary.exit_code


if __name__ == "__main__":
    _warm()
    _serve()
