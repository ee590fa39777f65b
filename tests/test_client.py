"""The client of applications against a real broker, with a thread that answers in the place of a worker."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import redis

from lading.config.errors import (
    BrokerError,
    InputsFailed,
    QueueFull,
    RequestFailed,
    RequestTimeout,
    UsageError,
)
from lading.pipelines import AsyncClient, Client
from lading.pipelines.calls import PART_INPUTS, Vectors
from lading.schedulers import results
from lading.schedulers.awaiting import IN_FLIGHT
from lading.schedulers.messages import INPUT_BYTES, decode
from tests.redis_server import RedisServer
from tests.responder import QUEUE, Responder, vector


@pytest.fixture
def responder(redis_server: RedisServer) -> Iterator[Responder]:
    responder = Responder(redis_server.url)
    yield responder
    responder.close()


@pytest.fixture(params=["threads", "asyncio"])
def client(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Any]:
    """Both clients, called alike."""
    client = Client(redis_server.url) if request.param == "threads" else Blocking(redis_server.url)
    yield client
    client.close()


class Blocking:
    """An AsyncClient, and its tickets, whose methods block: the same tests run over it."""

    def __init__(self, url: str, **more: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.inner: Any = AsyncClient(url, **more)

    def close(self) -> None:
        self.loop.run_until_complete(self.inner.close())
        self.loop.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(*given: Any, **more: Any) -> Any:
            result = self.loop.run_until_complete(method(*given, **more))
            if hasattr(result, "wait"):
                ticket = Blocking.__new__(Blocking)
                ticket.loop, ticket.inner = self.loop, result
                return ticket
            return result

        return call if callable(method) else method


def vectors(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def stored(server: RedisServer) -> list[Any]:
    with redis.Redis(port=server.port) as connection:
        return connection.keys("celery-task-meta-*")  # pyright: ignore


def test_every_verb_answers_in_order(client: Any, responder: Responder, redis_server: RedisServer) -> None:
    """Arrays or lists in the order of the inputs; results that were read take no memory in the broker."""
    texts = ["one", "two, longer", "é"]
    np.testing.assert_array_equal(client.encode("m", texts), vectors(texts))
    assert client.score("m", [("abc", "d")]).tolist() == [2.0]
    assert (
        client.score("m", ["d", "efgh"], query="abc").tolist()
        == client.score("m", [("abc", "d"), ("abc", "efgh")]).tolist()
    )
    assert client.extract("m", ["abc", "d"])[1] == [{"text": "d", "label": "FIRST", "score": 0.5, "start": 0, "end": 1}]
    assert stored(redis_server) == []


def test_quantised_vectors_come_with_their_scale(client: Any, responder: Responder) -> None:
    """As stored, and turned to floats on request."""
    int8 = client.encode("m", ["ab", "c"], vector_type="int8")
    assert isinstance(int8, Vectors)
    assert (int8.data.dtype, int8.scale.tolist()) == (np.int8, [1.0, 2.0])
    np.testing.assert_array_equal(int8.floats(), vectors(["ab", "c"]) * [[1], [2]])
    binary = client.encode("m", ["ab", "zz"], vector_type="binary")
    np.testing.assert_array_equal(binary.floats()[1], np.where(vector("zz") > 100, 2.0, -2.0))
    assert client.encode("m", ["ab"], vector_type="float16").dtype == np.float16


def test_a_call_of_nothing_sends_nothing(client: Any, redis_server: RedisServer) -> None:
    """Empty in, empty out, with the dimensions where the caller named them."""
    assert client.encode("m", [], dims=4).shape == (0, 4)
    assert client.encode("m", [], outputs=["sparse"]) == []
    assert client.score("m", []).shape == (0,)
    assert client.extract("m", []) == []


def test_a_large_call_is_split_and_put_together(client: Any, responder: Responder) -> None:
    """By bytes and by number, in order, with more parts than are in flight at once."""
    texts = [f"{n} " + "x" * (n % 5) for n in range(PART_INPUTS * (IN_FLIGHT + 3) + 1)]
    np.testing.assert_array_equal(client.encode("m", texts), vectors(texts))
    assert len(responder.seen) == IN_FLIGHT + 4
    big = ["a" * (INPUT_BYTES // 2), "é" * (INPUT_BYTES // 4), "c", "d" * INPUT_BYTES]
    np.testing.assert_array_equal(client.encode("m", big), vectors(big))
    assert [len(request.inputs) for request in responder.seen[-3:]] == [2, 1, 1]


def test_failed_inputs_are_named_and_the_others_returned(client: Any, responder: Responder) -> None:
    """By their place in the whole call; as an error, or beside the result."""
    texts = ["x"] * 300
    texts[7] = texts[290] = ""
    with pytest.raises(InputsFailed, match="2 of 300 inputs failed: input 7: empty-text") as caught:
        client.encode("m", texts)
    result, errors = client.encode("m", texts, on_error="return")
    assert errors == caught.value.errors == [(n, "empty-text", "there is nothing in it") for n in (7, 290)]
    np.testing.assert_array_equal(result, caught.value.result)
    assert not result[7].any()
    np.testing.assert_array_equal(result[8], vector("x"))
    assert client.extract("m", ["", "a"], on_error="return")[0][0] == []


def test_a_refused_request_speaks_in_the_workers_words(client: Any, responder: Responder) -> None:
    """The message and the kind of the worker's error."""
    with pytest.raises(RequestFailed, match="no-such: there is no such model") as caught:
        client.encode("no-such", ["a"] * 300, on_error="return")
    assert caught.value.kind == "ModelError"


def test_results_that_do_not_fit_are_refused(client: Any, redis_server: RedisServer) -> None:
    """A worker that answers nonsense makes a failed request, not wrong vectors."""
    with redis.Redis(port=redis_server.port) as broker, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, "m", ["a", "b"])
        _, raw = broker.blpop(QUEUE, timeout=30)  # pyright: ignore
        short = {"version": 1, "recipe": "h", "errors": []}
        results.store(broker, [(decode(raw).id, short)], 60, now=1.0)
        with pytest.raises(RequestFailed, match="does not fit 2 inputs"):
            call.result()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda c: c.encode("", ["a"]), "model: expected a name or a folder"),
        (lambda c: c.encode("m", "a"), "texts: expected a list of texts, found 'a'"),
        (lambda c: c.encode("m", ["a", None]), "texts[1]: expected text, found None"),
        (lambda c: c.encode("m", ["a", "\ud800"]), "texts[1]: half of a surrogate pair"),
        (lambda c: c.encode("m", ["a", "b" * 65_537]), "texts[1]: 65,537 bytes, a request takes 65,536: use a job"),
        (lambda c: c.score("m", [("a", "b"), "ab"]), "pairs[1]: expected two texts, found 'ab'"),
        (lambda c: c.score("m", [("a", 1)]), "pairs[0][1]: expected text, found 1"),
        (
            lambda c: c.score("m", [("a", "b")], query="q"),
            "documents[0]: expected text, since there is one query for all",
        ),
        (lambda c: c.encode("m", ["a"], dimms=8), "options.dimms: unknown; did you mean 'dims'?"),
        (lambda c: c.score("m", [("a", "b")], dims=8), "options.dims: only encode has this option"),
        (lambda c: c.encode("m", ["a"], timeout_s=0), "timeout_s: expected seconds above 0"),
        (lambda c: c.encode("m", ["a"], on_error="ignore"), "on_error: expected one of raise, return"),
        (lambda c: c.encode("m", ["a"], when_full="drop"), "when_full: expected one of wait, fail"),
        (lambda c: c.submit_encode("m", ["a"], ids=["1"]), "ids: name rows of a table"),
        (lambda c: c.submit_encode("m", ["a"], into="t"), "ids: 0 ids for 1 input: give one for each"),
        (lambda c: c.submit_encode("m", ["a", "b"], into="t", ids=["1", "1"]), "ids[1]: '1' is also the id of input 0"),
        (lambda c: c.submit_encode("m", ["a"], expires_s=-1), "expires_s: expected seconds"),
    ],
)
def test_what_cannot_be_sent_is_refused(client: Any, redis_server: RedisServer, call: Any, told: str) -> None:
    """At once, with the index or the option, and nothing is sent."""
    with pytest.raises(UsageError) as caught:
        call(client)
    assert told in str(caught.value)
    with redis.Redis(port=redis_server.port) as broker:
        assert broker.llen(QUEUE) == 0


def test_urls_that_are_none_are_refused() -> None:
    """Before anything is connected."""
    with pytest.raises(UsageError, match="must begin with redis://"):
        Client("http://x")


def test_requests_go_to_the_pool_that_can(client: Any, redis_server: RedisServer) -> None:
    """The smallest that computes in the precision asked for, or the one named if it can."""
    client.submit_encode("m", ["a"])
    client.submit_encode("m", ["a"], precision="float16")
    type(client)(redis_server.url, pool="gpu").submit_encode("m", ["a"])
    with redis.Redis(port=redis_server.port) as broker:
        assert (broker.llen(QUEUE), broker.llen("lading.gpu.requests")) == (1, 2)
    with pytest.raises(UsageError, match="pool cpu cannot take"):
        type(client)(redis_server.url, pool="cpu").encode("m", ["a"], precision="float16")
    with pytest.raises(UsageError, match="there is no pool 'gpuu'; did you mean 'gpu'"):
        type(client)(redis_server.url, pool="gpuu")


def test_nobody_answers(client: Any, redis_server: RedisServer) -> None:
    """A timeout that says so, and a message that says when it may be dropped."""
    before = time.time()
    with pytest.raises(RequestTimeout, match="no answer in time"):
        client.encode("m", ["a"], timeout_s=0.2)
    with redis.Redis(port=redis_server.port) as broker:
        message = decode(broker.lindex(QUEUE, 0))  # pyright: ignore
    assert before + 0.2 <= message.expires <= time.time() + 0.2


def test_a_full_queue(client: Any, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is waited for until there is room or the time is over, or is an error, as the caller chooses."""
    monkeypatch.setenv("LADING_MAX_WAITING_REQUESTS", "2")
    few = type(client)(redis_server.url)
    tickets = [few.submit_encode("m", ["a"]), few.submit_encode("m", ["b"])]
    with pytest.raises(QueueFull, match="no more than 2"):
        few.encode("m", ["c"], when_full="fail")
    with pytest.raises(QueueFull):
        few.submit_encode("m", ["c"], when_full="fail")
    with pytest.raises(RequestTimeout, match="takes no more than 2"):
        few.encode("m", ["c"], timeout_s=0.2)
    with pytest.raises(RequestTimeout, match="takes no more than 2"):
        few.submit_encode("m", ["c"], timeout_s=0.2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(few.encode, "m", ["c"] * PART_INPUTS * 5)
        responder = Responder(redis_server.url)
        assert len(waiting.result()) == PART_INPUTS * 5
    assert [ticket.wait().shape for ticket in tickets] == [(1, 8), (1, 8)]
    responder.close()
    few.close()


def test_tickets(client: Any, redis_server: RedisServer) -> None:
    """Not done before the answer, then done for whoever asks, any number of times."""
    ticket = client.submit_score("m", [("abc", "d")] * 300)
    assert not ticket.done()
    with pytest.raises(RequestTimeout):
        ticket.wait(0.1)
    responder = Responder(redis_server.url)
    assert ticket.wait().tolist() == [2.0] * 300
    assert ticket.done()
    assert ticket.wait(on_error="return")[1] == []
    assert sorted(stored(redis_server)) == sorted(results.key(id).encode() for id in ticket.ids)
    rows = client.submit_extract("m", ["a", "", "b"], into="lancedb://d/t", ids=["1", "2", "3"])
    assert rows.wait(on_error="return") == (2, [(1, "empty-text", "there is nothing in it")])
    assert (responder.seen[-1].into, responder.seen[-1].ids) == ("lancedb://d/t", ["1", "2", "3"])
    responder.close()


def test_threads_share_a_client(redis_server: RedisServer, responder: Responder) -> None:
    """More threads than redis-py gives connections by itself, each with its own answers."""
    with Client(redis_server.url) as shared, ThreadPoolExecutor(64) as pool:
        start = threading.Barrier(64)

        def calls(n: int) -> None:
            start.wait()
            for turn in range(4):
                texts = [f"{n}-{turn}-{one}" for one in range(1 + n % 8)]
                np.testing.assert_array_equal(shared.encode("m", texts), vectors(texts))

        list(pool.map(calls, range(64)))


def test_a_forked_child_has_connections_of_its_own(redis_server: RedisServer, responder: Responder) -> None:
    """A client that was used before the fork goes on in both processes."""
    with Client(redis_server.url) as shared:
        shared.encode("m", ["before"])
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for n in range(20):
                    np.testing.assert_array_equal(shared.encode("m", [f"child {n}"]), vectors([f"child {n}"]))
                code = 0
            finally:
                os._exit(code)
        for n in range(20):
            np.testing.assert_array_equal(shared.encode("m", [f"parent {n}"]), vectors([f"parent {n}"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tasks_share_a_client(redis_server: RedisServer, responder: Responder) -> None:
    """A hundred calls at once on one loop; one that is cancelled leaves the others in peace."""

    async def calls() -> None:
        async with AsyncClient(redis_server.url) as shared:
            responder.paused.set()
            lost = asyncio.create_task(shared.encode("m", ["lost"]))  # pyright: ignore
            asked = [asyncio.create_task(shared.encode("m", [f"{n}"])) for n in range(100)]  # pyright: ignore
            await asyncio.sleep(0)
            lost.cancel()
            responder.paused.clear()
            for n, answer in enumerate(await asyncio.gather(*asked)):
                np.testing.assert_array_equal(answer, vectors([f"{n}"]))
            with pytest.raises(asyncio.CancelledError):
                await lost

    asyncio.run(calls())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_broker_that_is_killed_is_survived(own_redis: RedisServer, asynchronous: bool) -> None:
    """While a call waits: it listens anew, asks again for what was lost, and takes what was stored meanwhile."""
    client: Any = Blocking(own_redis.url) if asynchronous else Client(own_redis.url)
    responder = Responder(own_redis.url)
    assert len(client.encode("m", ["warm"])) == 1
    responder.paused.set()
    with ThreadPoolExecutor(1) as pool:
        texts = [f"{n}" for n in range(PART_INPUTS * 3)]
        call = pool.submit(client.encode, "m", texts, timeout_s=120)
        wait_for(own_redis, 3)
        own_redis.kill()
        (own_redis.folder / "appendonlydir").rename(own_redis.folder / "gone")  # all that waited is lost
        own_redis.start()
        responder.paused.clear()
        np.testing.assert_array_equal(call.result(), vectors(texts))
    np.testing.assert_array_equal(client.encode("m", ["again"]), vectors(["again"]))
    own_redis.kill()
    with pytest.raises(RequestTimeout, match="cannot reach the broker"):
        client.encode("m", ["late"], timeout_s=0.3)
    with pytest.raises(RequestTimeout, match="cannot reach the broker"):
        client.submit_encode("m", ["late"], timeout_s=0.3)
    responder.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_lost_connection_is_survived(redis_server: RedisServer, asynchronous: bool) -> None:
    """A result that was published while nobody could hear it is looked up."""
    client: Any = Blocking(redis_server.url) if asynchronous else Client(redis_server.url)
    with redis.Redis(port=redis_server.port) as broker, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, "m", ["a"], timeout_s=120)
        wait_for(redis_server, 1)
        message = decode(broker.lindex(QUEUE, 0))  # pyright: ignore
        # In one transaction: the ear is cut off, and the result comes before it can listen again.
        ears: list[Any] = [one for one in broker.client_list() if one["sub"] != "0"]  # pyright: ignore
        with broker.pipeline(transaction=True) as step:
            for ear in ears:
                step.client_kill_filter(_id=ear["id"])
            results.add(step, [(message.id, results.encode_result(message.id, answered(message), now=1.0))], 60)
            step.execute()
        np.testing.assert_array_equal(call.result(), vectors(["a"]))
    client.close()


def answered(message: Any) -> bytes:
    from tests.responder import answer

    return answer(message.body)


def wait_for(server: RedisServer, count: int) -> None:
    """Returns when so many requests wait."""
    with redis.Redis(port=server.port) as broker:
        while broker.llen(QUEUE) < count:  # pyright: ignore
            threading.Event().wait(0.005)


def test_what_waiting_does_not_cure_is_told_at_once(redis_server: RedisServer) -> None:
    """A user who may not send."""
    with redis.Redis(port=redis_server.port) as broker:
        broker.acl_setuser("weak", enabled=True, passwords=["+pw"], commands=["+ping"], reset=True)
    with Client(f"redis://weak:pw@127.0.0.1:{redis_server.port}/0") as client:
        with pytest.raises(BrokerError, match="does not let this user") as caught:
            client.encode("m", ["a"])
        assert "pw" not in str(caught.value)


def test_the_client_imports_lightly() -> None:
    """`from lading.pipelines import Client` loads neither torch nor Arrow nor Lance nor Celery."""
    code = "import sys; from lading.pipelines import Client; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "pyarrow", "lance", "lancedb", "celery", "kombu", "pandas"}
    assert "redis" in loaded
