"""Logs: every event declared and told in its place, a line each in either format, and no secret in any of them."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from lading.config import logs
from lading.config.errors import RequestFailed
from lading.config.events import EVENTS, Told, tell
from lading.config.settings import load as load_settings
from lading.pipelines import Client
from lading.pipelines.job import draft
from lading.pipelines.registry import Registry
from lading.pipelines.spec import PolicySpec
from lading.pipelines.submit import Queues, submit
from tests.processes import LADING, Process
from tests.queued import job_spec
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("adapters", "cli", "config", "pipelines", "schedulers", "workers")
STABLE = ["time", "level", "event", "logger"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
RAN = ["shard taken", "shard begun", "shard published", "shard acknowledged"]
PASSWORD, TOKEN = "pa55-w0rd/of the@broker", "hf_CanaryCanaryCanaryCanaryCanary1234"
QUOTED = "pa55-w0rd%2Fof%20the%40broker"
AWS_KEY, AWS_SECRET = "AKIACANARYCANARY1234", "canary/wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLE"

log = logging.getLogger("lading.test")
Written = Callable[[], list[str]]
Begin = Callable[..., Written]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Sets logs up in this process, to a file; what it returns tells the lines so far."""
    root, ours = logging.getLogger(), logging.getLogger("lading")
    before = root.level, ours.level, ours.propagate, list(root.handlers)
    file = tmp_path / "records.log"

    def start(form: str, level: int = logging.DEBUG) -> Written:
        file.write_text("")
        root.handlers.clear()
        logs.setup(level, form=form, file=str(file))
        ours.propagate = True
        return lambda: file.read_text(encoding="utf-8").split("\n")[:-1]

    yield start
    root.handlers[:] = before[3]
    root.level, ours.level, ours.propagate = before[:3]
    logging.captureWarnings(False)
    logs._bound.clear()
    logs._hidden.clear()


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADING_BROKER_URL", f"redis://lading:{QUOTED}@127.0.0.1:1/0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", AWS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS_SECRET)


def check_hidden(said: str) -> None:
    for secret in (PASSWORD, QUOTED, TOKEN, AWS_KEY, AWS_SECRET, "Canary", "w0rd"):
        assert secret not in said, said


# -- the declarations


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(path for room in ROOMS for path in (ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tell":
                yield f"{path.name}:{node.lineno}", node


def test_every_event_is_declared_and_told() -> None:
    """A name is a literal of the table, its fields are those declared there, and no line of the table is without a call."""
    told: dict[str, set[str]] = defaultdict(set)
    for where, call in calls():
        name = call.args[1]
        assert isinstance(name, ast.Constant), f"{where}: an event's name is constant"
        assert name.value in EVENTS, where
        given = {keyword.arg for keyword in call.keywords if keyword.arg}
        assert given <= set(EVENTS[name.value].fields.split()), where
        told[name.value] |= given
    assert EVENTS.keys() - told.keys() == {"message", "record unreadable"}  # logs.py's own
    reserved = {*STABLE, "exception", "exc_info", "stack"}
    assert not [name for name, event in EVENTS.items() if reserved & set(event.fields.split())]


def test_nothing_is_logged_but_events() -> None:
    """No module logs a sentence of its own: what is interpolated cannot be searched for."""
    for path in sorted(path for room in ROOMS for path in (ROOT / room).glob("*.py")):
        found = re.findall(r"\blog\.(?:debug|info|warning|error|exception|critical)\(", path.read_text())
        assert not found, path


def test_the_documents_table_is_the_code_s() -> None:
    """docs/logs.md lists every event with its level, fields and meaning, in the same order."""
    text = (ROOT / "docs/logs.md").read_text().partition("## Events")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if " | `" in line]
    listed = [(name.strip("`"), level, fields.replace("`", ""), meaning) for level, name, fields, meaning in rows]
    levels = logging.getLevelNamesMapping()
    assert [(name, levels[level.upper()], fields, meaning) for name, level, fields, meaning in listed] == [
        (name, event.level, event.fields, event.meaning) for name, event in EVENTS.items()
    ]


# -- the formats


def test_a_json_line_has_the_stable_keys(begin: Begin) -> None:
    """First time (UTC), level, event and logger, in this order; then what is bound and what is told, as JSON has it."""
    written = begin("json")
    logs.bind(pool="cpu", worker="w")
    tell(log, "shard taken", job="j", shard=3, generation=0, model="m")
    tell(log, "packing checked", relative_error=float("nan"))
    logging.getLogger("redis").warning("%s of %d", "one", 2)
    first, second, third = map(json.loads, written())
    assert list(first) == [*STABLE, "pool", "worker", "job", "shard", "generation", "model"]
    assert TIME.fullmatch(first.pop("time"))
    assert first == {"level": "info", "event": "shard taken", "logger": "lading.test", "pool": "cpu", "worker": "w"} | {
        "job": "j", "shard": 3, "generation": 0, "model": "m",
    }  # fmt: skip
    assert second["relative_error"] == "nan"  # JSON has no such number
    assert (third["level"], third["event"], third["logger"]) == ("warning", "message", "redis")
    assert third["message"] == "one of 2"


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_one_record(begin: Begin, form: str) -> None:
    """JSON: one line with the whole traceback. Console: its lines are marked, so that none looks like a record."""
    written = begin(form)
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000Z [info     ] shard published    shard=9")
    except ValueError as error:
        tell(log, "thread died", error, thread="t")
    first, *more = written()
    if form == "json":
        assert not more
        exception = json.loads(first)["exception"]
        assert exception.startswith("Traceback")
        assert "[info     ] shard published" in exception
    else:
        assert "thread died" in first
        assert len(more) >= 4
        assert all(line.startswith("  | ") for line in more)


# Also what moves a terminal's cursor, ends a line for some reader, or turns the reading direction.
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("\n\r\t\x1b\x9b\x85\u2028\u202e\"'\\= ")))


@pytest.mark.parametrize("form", ["json", "console"])
@trials(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_no_value_forges_a_line(begin: Begin, form: str, text: str) -> None:
    """Whatever a field, another library's message or an exception says, it begins no line, and nothing unprintable is written."""
    written = begin(form)
    tell(log, "job unreachable", job="j", why=text)
    logging.getLogger("kombu").warning("%s", text)
    said = written()
    assert len(said) == 2
    assert all(line.isprintable() for line in said)
    if form == "json" and logs.redacted(text) == text:
        assert json.loads(said[0])["why"] == text
        assert json.loads(said[1])["message"] == text.rstrip()


def test_threads_do_not_mix_what_they_tell(begin: Begin) -> None:
    """Two shards in many threads at once: each line is whole, and has the fields of its own call."""
    written, threads, each = begin("json"), 8, 100
    ready = threading.Barrier(threads)

    def work(number: int) -> None:
        ready.wait()
        for one in range(each):
            named = {"job": f"job{number % 2}", "shard": number % 2, "generation": one, "model": f"model{number % 2}"}
            tell(log, "shard taken", **named)
            tell(log, "shard left", **named, why=f"thread {number}")
            logging.getLogger("celery").warning("from %d", number)

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    records = [json.loads(line) for line in written()]
    assert len(records) == 3 * threads * each
    for record in records:
        if record["event"] == "message":
            assert not record.keys() & {"job", "shard", "model", "why"}
        else:
            assert (record["job"], record["model"]) == (f"job{record['shard']}", f"model{record['shard']}")
    left = [(record["why"], record["generation"]) for record in records if record["event"] == "shard left"]
    assert len(set(left)) == threads * each


def test_a_record_that_cannot_be_shown_is_told_of(begin: Begin) -> None:
    """Where arguments do not fit the text neither is printed, and the next record is written as ever."""
    written = begin("json")
    logging.getLogger("celery").warning("%d %s", TOKEN)
    tell(log, "sweep led")
    broken, next_one = map(json.loads, written())
    assert (broken["event"], broken["logger"]) == ("record unreadable", "celery")
    assert "TypeError" in broken["why"]
    check_hidden(json.dumps(broken))
    assert next_one["event"] == "sweep led"


def test_who_renders_records_without_us_gets_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """An application with a logging of its own sees the event and its fields as text."""
    assert str(Told("broker away", {"why": "a b", "seconds": 3})) == "broker away: why='a b' seconds=3"
    with caplog.at_level(logging.INFO, "lading.test"):
        tell(log, "sweep led")
    assert caplog.messages == ["sweep led"]


# -- secrets

PLACES = [
    f"redis://lading:{QUOTED}@127.0.0.1:6379/0",
    f"redis://:{PASSWORD}@[::1]/0 is no URL",
    f"cannot get https://user:{TOKEN}@hub.example/models?x=1",
    f"AUTH lading {PASSWORD}",
    f"{{'password': {PASSWORD!r}}}",
    f"Authorization: Bearer {TOKEN}",
    f'{{"authorization": "Basic {TOKEN}"}}',
    f"headers={{'Authorization': b'AWS4-HMAC-SHA256 Credential={AWS_KEY}/2026/s3, Signature=abc'}}",
    f"AWS_SECRET_ACCESS_KEY={AWS_SECRET}",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential={AWS_KEY}%2F2026&X-Amz-Signature=abcdef&x=1",
    f"token {TOKEN}.",
    f"redis:/:{QUOTED}@h/job.yaml: no such file",
]


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_written(begin: Begin, secrets: None, form: str, place: str) -> None:
    """In a field, nested ones included, an exception, another library's record or warning: not as it is and not quoted."""
    written = begin(form)
    tell(log, "model failed", model={"url": [place]}, weights=Path(place), why=place, again=False)
    try:
        try:
            raise OSError(place)
        except OSError as error:
            raise ValueError(f"again: {place}") from error
    except ValueError as error:
        tell(log, "thread died", error, thread="t")
        logging.getLogger("celery.worker").exception("of %r", place)
    logging.getLogger("botocore").warning("%s %r", place, {"url": place})
    warnings.warn(place, stacklevel=1)
    said = "\n".join(written())
    check_hidden(said)
    assert said.count("***") >= 6
    assert len(written()) == 5 or form == "console"


@pytest.mark.parametrize("place", [*PLACES[2:3], *PLACES[5:8], *PLACES[9:]])
def test_secrets_are_known_by_their_form_too(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and keys of others, which this process's environment does not have."""
    for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    logs._hidden.clear()
    check_hidden(logs.redacted(place))


@trials(max_examples=60)
@given(
    before=st.text(),
    after=st.text(),
    password=st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=8),
)
def test_a_password_of_the_settings_is_nowhere(before: str, after: str, password: str) -> None:
    """Whatever stands around it, and whatever signs it has."""
    environ = {"LADING_BROKER_URL": f"redis://u:{password}@h/0", "PGPASSWORD": password}
    known = logs._secrets(environ)
    assert known is not None
    for form in (password, repr(password)[1:-1], json.dumps(password)[1:-1]):
        assert form not in known.sub("", f"{before}\n{form}\n{after}") or form in before + after


def test_a_password_in_a_file_of_settings_is_known_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no environment has it."""
    (tmp_path / "settings.yaml").write_text(f"broker_url: redis://worker:{QUOTED}@queue/0\n")
    monkeypatch.setenv("LADING_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("LADING_BROKER_URL", raising=False)
    logs._hidden.clear()
    check_hidden(logs.redacted(f"AUTH worker {PASSWORD} or {QUOTED}"))
    logs._hidden.clear()


def test_what_is_no_secret_stays() -> None:
    """Counts of tokens, paths with an @, names of settings."""
    for text in (
        "tokens=4096 max_tokens: 512",
        "s3://bucket/a@b/c.parquet",
        "hf_transfer is not installed",
        "check user and password in LADING_BROKER_URL",
        "job 3f2a-9 of https://host/path?version=2",
    ):
        assert logs.redacted(text) == text


def test_long_values_are_cut_and_cost_no_time(begin: Begin) -> None:
    """Beginning and end stay; text made to be slow to search is searched all the same."""
    written = begin("json")
    for text in ("a-" * 500_000, "redis://" * 100_000, "?key" * 200_000, "x" * 1_000_000 + TOKEN):
        tell(log, "sweep failed", why=text)
    for record in map(json.loads, written()):
        assert logs.LONGEST <= len(record["why"]) < logs.LONGEST + 100
        check_hidden(record["why"])


def test_a_library_s_own_handler_is_passed_by(begin: Begin) -> None:
    """transformers and the hub's client print by themselves: their records come once, and through here."""
    script = """
import logging, sys
from lading.config import logs
logs.setup(logging.INFO, form="json")
import huggingface_hub, transformers
for name in ("transformers.tokenization", "huggingface_hub.file_download"):
    logging.getLogger(name).warning("said by %s", name)
"""
    loud = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    done = subprocess.run([sys.executable, "-c", script], env=loud, capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [one["message"].split()[-1] for one in said if one["message"].startswith("said by")] == [
        "transformers.tokenization",
        "huggingface_hub.file_download",
    ]


# -- processes


@pytest.fixture
def guarded(own_redis: RedisServer, tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installation with secrets: a Redis with a password, tokens in the environment, a hub that nobody answers at. The broker's URL."""
    own_redis.kill()
    own_redis.extra = ("--requirepass", PASSWORD)
    own_redis.start()
    url = own_redis.url.replace("redis://", f"redis://:{QUOTED}@")
    variables = {"BROKER_URL": url, "JOBS": f"{tmp_path}/jobs", "ROOTS": f"{tmp_path},{tiny_encoder.parent.parent}"}
    variables |= {"FOLD_INTERVAL_S": "0.1", "SWEEP_INTERVAL_S": "0.2", "THREADS": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"LADING_{name}", value)
    for name, value in {"HF_TOKEN": TOKEN, "AWS_ACCESS_KEY_ID": AWS_KEY, "AWS_SECRET_ACCESS_KEY": AWS_SECRET}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{TOKEN}@127.0.0.1:1")
    return url


def records(process: Process) -> list[dict[str, Any]]:
    """Every line that a process wrote, each of which must be one."""
    return [json.loads(line) for line in process.said().splitlines()]


def test_a_worker_tells_what_happens_to_each_shard(guarded: str, tmp_path: Path, tiny_encoder: Path) -> None:
    """Two jobs at once: each shard's transitions once, in order, with its own job, shard, model and rows; nothing but JSON, no secret."""
    worker = Process([*LADING, "-v", "worker"], {}, tmp_path / "worker.log")
    sizes = {}
    try:
        for name, rows in (("narrow", 2), ("wide", 4)):
            spec = dataclasses.replace(job_spec(tmp_path, tiny_encoder, name, 12), policy=PolicySpec(shard_rows=rows))
            sizes[submit(draft(spec), Queues.of(load_settings())).job] = rows
        with Client() as client, pytest.raises(RequestFailed):
            client.encode("org/absent", ["text"], timeout_s=120)
        registry = Registry(load_settings().jobs)
        worker.until(lambda: not any(map(registry.is_open, sizes)))
        worker.until(lambda: worker.said().count("shard acknowledged") == 24 / 2 + 24 / 4)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0, worker.said()
    finally:
        worker.close()
    check_hidden(worker.said())
    found = records(worker)
    for record in found:
        assert list(record)[:4] == STABLE
        assert TIME.fullmatch(record["time"])
        assert record["event"] == "message" or record["logger"].startswith("lading.")
        declared = EVENTS[record["event"]]
        assert record.keys() - {*STABLE, "pool", "worker", "exception"} == set(declared.fields.split()) - {
            "pool",
            "worker",
        }
        assert record["event"] == "message" or logging.getLevelName(declared.level).lower() == record["level"]
    shards: dict[tuple[str, int], list[str]] = defaultdict(list)
    for record in found:
        if record["event"].startswith("shard "):
            shards[record["job"], record["shard"]].append(record["event"])
            assert record["model"] == str(tiny_encoder)
            assert record["pool"] == "cpu"
            if record["event"] == "shard published":
                assert record["rows"] == sizes[record["job"]]
    assert shards == {(job, shard): RAN for job, rows in sizes.items() for shard in range(24 // rows)}
    (name,) = {record["worker"] for record in found if "worker" in record}
    assert [record["event"] for record in found if record["event"].startswith("worker ")] == [
        "worker starting", "worker started", "worker stopping", "worker stopped",
    ]  # fmt: skip
    assert name
    told = Counter(record["event"] for record in found)
    assert told["model loading"] == told["model loaded"] == 1
    assert told["process started"] == told["requests refused"] == 1
    assert told["sweep led"] == 1
    assert {record["job"] for record in found if record["event"] == "job finished"} == sizes.keys()


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["scheduler", "--once"],
        ["status"],
        ["encode", "corpus.parquet", "--model", f"https://user:{TOKEN}@hub/m", "--to", "parquet://out"],
        ["submit", f"redis://:{QUOTED}@h/job.yaml"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_tells_a_secret(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], debug: str
) -> None:
    """Not in what they print when the broker refuses the password, nor when what was typed has a token in it, nor in a traceback."""
    monkeypatch.setenv("LADING_BROKER_URL", guarded.replace("pa55", "pa66"))
    command = Process([*LADING, "-vv", *arguments], {"LADING_DEBUG": debug}, tmp_path / "command.log")
    code = command.wait()
    assert code in (0, 2, 3), command.said()
    check_hidden(command.said())
    assert "lading: " in command.said()
    assert ("Traceback" in command.said()) == bool(debug and code)  # status says what it can, and ends with 0


def test_a_scheduler_tells_what_it_did(guarded: str, tmp_path: Path, tiny_encoder: Path) -> None:
    """That it leads, and a line for each pass that did something."""
    job = job_spec(tmp_path, tiny_encoder, "job", 24)
    scheduler = Process([*LADING, "-v", "scheduler"], {}, tmp_path / "scheduler.log")
    try:
        scheduler.until(lambda: "sweep led" in scheduler.said())
        submitted = submit(draft(job), Queues.of(load_settings()))
        Queues.of(load_settings()).broker.client.delete("lading.cpu.shards")  # as if Redis had lost them
        scheduler.until(lambda: '"swept"' in scheduler.said())
        scheduler.send(signal.SIGTERM)
        assert scheduler.wait() == 0
    finally:
        scheduler.close()
    said = scheduler.said().splitlines()
    swept = [json.loads(line) for line in said if '"event": "swept"' in line]
    assert sum(one["sent"] for one in swept) >= submitted.sent
    check_hidden(scheduler.said())


@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_gets_lines_for_people(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch, colours: bool
) -> None:
    """With colours unless NO_COLOR says otherwise; the summary and the end of the command are what they are without."""
    spec = job_spec(tmp_path, tiny_encoder, "job", 2)
    command = [*LADING, "-v", "encode", *spec.source.paths, "--model", str(tiny_encoder), "--to", spec.sink.to]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **({} if colours else {"NO_COLOR": "1"})}
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    assert process.wait() == 0, said
    text = said.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    (line,) = [line for line in plain.splitlines() if "attention chosen" in line]
    assert re.search(r"\d\dZ \[info     \] attention chosen   kernel=\S+ device=cpu precision=float32$", line.rstrip())
    assert ("\x1b[32minfo" in text) == colours
    assert '"event"' not in text
    assert "finished: 4 of 4 rows" in plain
