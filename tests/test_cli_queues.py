"""`lading queues` and `lading dead`: what they print, and what they do to the letters."""

from __future__ import annotations

import json
import time

import pytest

from lading.cli import main
from lading.schedulers.connection import Broker
from lading.schedulers.queues import Queue
from tests.redis_server import RedisServer

REQUEST = b'{"headers": {"task": "lading.request"}}'


@pytest.fixture
def broker(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A Redis that the command line finds."""
    monkeypatch.setenv("LADING_BROKER_URL", redis_server.url)
    return Broker.connect(redis_server.url)


@pytest.fixture
def requests(broker: Broker) -> Queue:
    return broker.queue("lading.cpu.requests")


@pytest.fixture
def letters(broker: Broker, requests: Queue) -> list[str]:
    """Two dead requests and a dead shard; their ids in the order of their deaths."""
    requests.send([REQUEST, b"\xff\x1b[31m"])
    shards = broker.queue("lading.cpu.shards")
    shards.send([b"junk"])
    first, second = requests.pull(2, 1000)
    requests.bury(first, "unknown field 'verbs'\x1b[31m")
    requests.bury(second, "no JSON")
    shards.bury(shards.pull(1, 1000)[0], "no JSON")
    return [letter.id for letter in (*requests.dead()[::-1], *shards.dead())]


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(list(command)) == 0
    return capsys.readouterr().out


def test_queues_of_every_pool(broker: Broker, requests: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Each pool has its workers and, for requests and shards, what waits, is in flight and is dead, in words and in JSON."""
    requests.send([b"1", json.dumps({"headers": {"lading_sent": time.time() - 125}}).encode(), b"3"])
    requests.pull(1, 1000)
    requests.bury(requests.pull(1, 1000)[0], "why")
    broker.alive("cpu", "one")
    requests.send([b"4"])
    words = printed(capsys, "queues").splitlines()
    assert words[:3] == [
        "pool cpu: 1 worker",
        "  requests: 2 waiting, 1 in flight, 1 dead letter",
        "  shards:   0 waiting, 0 in flight",
    ]
    [cpu, *_] = json.loads(printed(capsys, "queues", "--json"))
    assert cpu == {
        "pool": "cpu",
        "workers": 1,
        "requests": {"waiting": 2, "in_flight": 1, "dead": 1, "oldest_age_s": None},
        "shards": {"waiting": 0, "in_flight": 0, "dead": 0, "oldest_age_s": None},
    }


def test_the_age_of_what_waits(requests: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """How long the next message has waited is told as a clock shows it."""
    requests.send([json.dumps({"headers": {"lading_sent": time.time() - 7500}}).encode()])
    assert "the next since 2:0" in printed(capsys, "queues")


def test_dead_letters_are_listed(letters: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """All of a pool or the newest of each queue, each with its reason, without what would steer the terminal."""
    lines = printed(capsys, "dead", "list", "cpu").splitlines()
    assert [line.split()[:2] for line in lines] == [
        [letters[1], "requests"],
        [letters[0], "requests"],
        [letters[2], "shards"],
    ]
    assert lines[1].endswith(r"unknown field 'verbs'\x1b[31m")
    assert len(printed(capsys, "dead", "list", "cpu", "--top", "1").splitlines()) == 2
    objects = [json.loads(line) for line in printed(capsys, "dead", "list", "cpu", "--json").splitlines()]
    assert [(one["id"], one["queue"], one["reason"]) for one in objects][2] == (letters[2], "shards", "no JSON")
    assert printed(capsys, "dead", "list", "gpu") == ""


def test_a_dead_letter_is_shown_whole(letters: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """JSON spread out, other bytes escaped; with --json as it was sent."""
    out = printed(capsys, "dead", "show", "cpu", letters[0], letters[1])
    assert '"task": "lading.request"' in out
    assert r"b'\xff\x1b[31m'" in out
    assert "\x1b" not in out
    lines = printed(capsys, "dead", "show", "cpu", letters[0], letters[1], "--json").splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["message"], first["encoding"]) == (REQUEST.decode(), "utf-8")
    assert (second["message"], second["encoding"]) == ("/xtbMzFt", "base64")


def test_dead_letters_are_replayed_and_dropped(
    broker: Broker, requests: Queue, letters: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A letter that is named goes back to its queue or away, --all takes all there are, the oldest first."""
    assert printed(capsys, "dead", "replay", "cpu", letters[1]) == "1 message sent again\n"
    assert printed(capsys, "dead", "drop", "cpu", letters[2]) == "1 dead letter dropped\n"
    assert printed(capsys, "dead", "replay", "cpu", "--all") == "1 message sent again\n"
    assert [lease.raw for lease in requests.pull(9, 1000)] == [b"\xff\x1b[31m", REQUEST]
    assert broker.queue("lading.cpu.shards").counts().dead == requests.counts().dead == 0
    assert printed(capsys, "dead", "drop", "cpu", "--all") == "0 dead letters dropped\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["list", "cpuu"], "there is no pool 'cpuu'; did you mean 'cpu'?"),
        (["show", "cpu", "abc"], "pool cpu has no dead letter abc: lading dead list cpu"),
        (["show", "cpu"], "name dead letters of lading dead list cpu\n"),
        (["drop", "cpu"], "name dead letters of lading dead list cpu, or say --all"),
        (["replay", "cpu", "--all", "abc"], "name dead letters of lading dead list cpu, or say --all"),
    ],
)
def test_what_is_not_there_is_said(
    broker: Broker, letters: list[str], command: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown pool or letter, or no letter at all, is refused with 2 and changes nothing."""
    assert main(["dead", *command]) == 2
    assert told in capsys.readouterr().err
    assert broker.queue("lading.cpu.requests").counts().dead == 2


@pytest.mark.parametrize("command", [["queues"], ["dead", "list", "cpu"]])
def test_no_broker(
    command: list[str], own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where Redis is away, the command ends with 3 and one line that names its place without the password."""
    own_redis.kill()
    monkeypatch.setenv("LADING_BROKER_URL", f"redis://:sesame@127.0.0.1:{own_redis.port}/0")
    assert main(command) == 3
    err = capsys.readouterr().err
    assert err.startswith("lading: cannot reach the broker at redis://***@127.0.0.1:")
    assert "LADING_BROKER_URL" in err
    assert err.count("\n") == 1
    assert "sesame" not in err
