"""The warm parent of the workers, and what an undisturbed local run makes of a corpus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.rig import TOLD, Rig, Tally
from tests.crash import jobs
from tests.redis_server import RedisServer
from tests.zygote import Zygote

SEED = int(os.environ.get("LADING_CHAOS_SEED", "0"))
SHARDS = 24
Rigs = Callable[..., Rig]


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("workers")
    zygote = Zygote(folder, LADING_WINDOW_TOKENS=str(jobs.BATCH_TOKENS), LADING_CACHE_DIR=str(folder / "cache"))
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small shards, with rejects of each kind among them."""
    return jobs.write_corpus(tmp_path_factory.mktemp("corpus") / "docs", shards=SHARDS)


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> jobs.Undisturbed:
    """The outcome of a local run that nobody disturbs, by corpus."""
    known: dict[Path, jobs.Outcome] = {}

    def run(corpus: Path) -> jobs.Outcome:
        if corpus not in known:
            spec = jobs.encode(corpus, tiny_encoder, f"parquet://{tmp_path_factory.mktemp('undisturbed')}/docs")
            jobs.assert_ended(spec, zygote.finish(spec, batch_tokens=jobs.BATCH_TOKENS), corpus)
            known[corpus] = jobs.outcome(spec.sink.to)
        return known[corpus]

    return run


@pytest.fixture
def rigs(zygote: Zygote, redis_server: RedisServer, tmp_path: Path) -> Iterator[Rigs]:
    """Makes rigs; what a failed test leaves running is killed."""
    made: list[Rig] = []

    def make(server: RedisServer = redis_server, root: str = str(tmp_path), **given: Any) -> Rig:
        made.append(Rig(zygote, server, root, tmp_path, **given))
        return made[-1]

    yield make
    for rig in made:
        rig.fleet.abandon()


@pytest.fixture(params=jobs.SINKS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was done, and what it cost."""
    if not TOLD:
        return
    terminalreporter.section("chaos")
    total = Tally()
    for what, tally, more in TOLD:
        terminalreporter.write_line(f"{what:<42} {tally}{more and '; '}{more}")
        total.add(tally)
    terminalreporter.write_line(f"{'in all':<42} {total}")
