"""The warm parent, and what an undisturbed run makes of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import jobs
from tests.zygote import Zygote


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("zygote")
    zygote = Zygote(
        folder,
        LADING_WINDOW_TOKENS=str(jobs.BATCH_TOKENS),
        LADING_FOLD_INTERVAL_S="0",
        LADING_CACHE_DIR=str(folder / "cache"),
    )
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_corpus(tmp_path_factory.mktemp("corpus") / "docs", shards=6)


@pytest.fixture(scope="session")
def undisturbed(zygote: Zygote, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> jobs.Undisturbed:
    """The outcome of one run that nobody disturbs, by corpus; the same for both sinks."""
    known: dict[Path, jobs.Outcome] = {}

    def run(corpus: Path) -> jobs.Outcome:
        if corpus not in known:
            place = tmp_path_factory.mktemp("undisturbed")
            outcomes: list[jobs.Outcome] = []
            for kind in jobs.SINKS:
                spec = jobs.encode(corpus, tiny_encoder, f"{kind}://{place}/{kind}")
                jobs.assert_ended(spec, zygote.finish(spec, batch_tokens=jobs.BATCH_TOKENS), corpus)
                outcomes.append(jobs.outcome(spec.sink.to))
            jobs.assert_same(*outcomes)
            known[corpus] = outcomes[0]
        return known[corpus]

    return run


@pytest.fixture(params=jobs.SINKS)
def to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}://{tmp_path}/out/docs"


@pytest.fixture
def replacing(
    corpus: Path, tiny_encoder: Path, zygote: Zygote, undisturbed: jobs.Undisturbed, tmp_path: Path
) -> jobs.Replacing:
    after = jobs.write_corpus(tmp_path / "after", shards=6, generation=1)
    old, new = undisturbed(corpus).table, undisturbed(after).table
    assert old["id"].equals(new["id"])
    assert not old["body"].equals(new["body"])
    return jobs.Replacing(zygote, corpus, after, tiny_encoder, undisturbed, tmp_path)
