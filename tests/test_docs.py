"""What the documents say can be typed, and where they point to, is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lading.cli import main
from lading.cli.app import cli
from lading.cli.streams import READER_LEFT
from lading.config.catalogue import load
from lading.config.settings import load as load_settings
from lading.pipelines.records import REJECT_CODES
from lading.pipelines.registry import Registry
from lading.pipelines.spec import from_dict
from lading.schedulers import pools
from lading.schedulers.bodies import RequestOptions
from lading.schedulers.connection import Broker
from lading.schedulers.pools import Preload
from lading.workers.summary import EXIT_CODES
from lading.workers.worker import Worker
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(document: Path) -> list[str]:
    return typed(document.read_text())


def typed(text: str) -> list[str]:
    """The lines to be typed: those behind a `$` in console blocks, every line of bash blocks. Comments stay."""
    found: list[str] = []
    for language, block in FENCE.findall(text):
        lines = block.splitlines()
        if language == "console":
            found += [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif language == "bash":
            found += [line for line in lines if line and not line.startswith("#")]
    return found


def anchors(document: Path) -> set[str]:
    """Headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file that exists, and a heading in it where it names one."""
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_make_targets_exist(document: Path) -> None:
    """Every `make TARGET` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [shlex.split(command, comments=True)[1] for command in commands(document) if command.startswith("make ")]
    assert set(asked) <= targets


def write_corpus(folder: Path) -> None:
    """What the documents' commands are about."""
    (folder / "corpus").mkdir()
    for part in range(2):
        ids = [f"{part}-{row}" for row in range(20)]
        table = pa.table({"doc_id": ids, "body": [f"how to open the file {name}" for name in ids]})
        pq.write_table(table, folder / "corpus" / f"{part}.parquet")


def test_the_readme_s_commands_run(tiny_encoder: Path, tmp_path: Path) -> None:
    """The README's first `lading` commands, typed one after the other beside a corpus, all succeed."""
    write_corpus(tmp_path)
    local = [command for command in commands(ROOT / "README.md") if command.startswith("lading ")][:3]
    assert [shlex.split(command)[1] for command in local] == ["encode", "query", "status"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in local:
        line = re.sub(r"\bMODEL\b", shlex.quote(str(tiny_encoder)), command)
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout, line


def test_the_catalogue_s_commands_run(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/catalogue.md, typed from top to bottom beside a corpus, with the models.yaml that it shows and the real model in the hub's cache."""
    text = (ROOT / "docs/catalogue.md").read_text()
    write_corpus(tmp_path)
    (block,) = [block for language, block in FENCE.findall(text) if language == "yaml"]
    (tmp_path / "config").mkdir()
    (tmp_path / "config/models.yaml").write_text(block)
    commit, repository = "0" * 40, tmp_path / "hub/models--sentence-transformers--all-MiniLM-L6-v2"
    shutil.copytree(minilm, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    for name, value in {"HF_HUB_CACHE": "hub", "LADING_CONFIG_DIR": "config", "LADING_OFFLINE": "true"}.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value != "true" else value)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for line in commands(ROOT / "docs/catalogue.md"):
        words = shlex.split(line.replace("MODEL", str(minilm)), comments=True)
        named = [one for word in words for one in (sorted(map(str, tmp_path.glob(word))) if "*" in word else [word])]
        assert named[0] == "lading"
        assert main(named[1:]) == 0, line
        said.append(capsys.readouterr().out)
    assert "acme/legal-embed-v2" in said[0]
    assert "not on this machine" in said[1]
    assert re.search(r"^grade   verified$", said[2], re.MULTILINE)
    assert said[3].splitlines()[-1] == "pass"
    assert "40 of 40 rows" in said[4]
    for document in ("README.md", "CHANGELOG.md", "docs/catalogue.md"):
        assert f"{len(load({}))} models" in (ROOT / document).read_text()


def test_the_readme_s_other_commands_are_those_of_the_documents() -> None:
    """What the README shows of queue and catalogue stands in docs/queue.md and docs/catalogue.md, whose commands are run."""
    documents = [ROOT / "docs/queue.md", ROOT / "docs/catalogue.md"]
    known = {tuple(shlex.split(command, comments=True)) for one in documents for command in commands(one)}
    shown = [command for command in commands(ROOT / "README.md") if command.startswith("lading ")][3:]
    assert shown
    assert {tuple(shlex.split(command, comments=True)) for command in shown} <= known


def test_the_manual_knows_every_verb() -> None:
    """docs/cli.md has a line for each verb that there is, and for no other."""
    table = re.findall(r"^\| `lading (\w+)", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    assert table == list(cli.commands)


def test_the_manual_knows_every_exit_code() -> None:
    """docs/cli.md explains each code that the command can give: those of a run's end, of a reader that left, and 1 and 2."""
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    assert {int(row) for row in rows} == {*EXIT_CODES.values(), 1, 2, READER_LEFT}


def test_the_manual_knows_every_reject_code() -> None:
    """docs/cli.md explains each code that a row may be rejected with, in the order in which they are met."""
    (codes,) = re.findall(r"^The codes: (.+?)\.\n", (ROOT / "docs/cli.md").read_text(), re.MULTILINE | re.DOTALL)
    assert re.findall(r"`([a-z0-9-]+)`", codes) == list(REJECT_CODES)


def documented_fields() -> dict[str, list[str]]:
    """Heading under "JSON" in the manual -> the names in the first column of its table."""
    found: dict[str, list[str]] = {}
    section = re.split(r"^## ", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    (json_section,) = [one for one in section if one.startswith("JSON\n")]
    for part in json_section.split("\n### ")[1:]:
        cells = re.findall(r"^\| (.+?) \|", part, re.MULTILINE)
        found[part.splitlines()[0]] = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    return found


def test_the_manual_knows_every_json_field(
    tiny_encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """docs/cli.md names each field that a verb prints with --json, once, and no other."""
    monkeypatch.setenv("LADING_BROKER_URL", redis_server.url)
    monkeypatch.setenv("LADING_JOBS", str(tmp_path / "jobs"))
    source, output = tmp_path / "in.parquet", f"{tmp_path}/db/docs"
    pq.write_table(pa.table({"text": ["a file is opened", " "]}), source)
    encode = ["encode", str(source), "--model", str(tiny_encoder), "--to", f"lancedb://{output}"]
    monkeypatch.setenv("LADING_BROKER_URL", redis_server.url)
    queue = Broker.connect(redis_server.url).queue("lading.cpu.shards")
    queue.send([b"junk"])
    queue.bury(queue.pull(1, 1)[0], "no JSON")
    commands = {
        "plan, --dry-run": [*encode, "--dry-run"],
        "encode, score, extract, run, watch": encode,
        "submit, --submit": [*encode, "--submit", "--limit", "1", "--on-existing", "append"],
        "status without argument": ["status"],
        "scheduler --once": ["scheduler", "--once"],
        "status": ["status", output],
        "rejects": ["rejects", output],
        "query": ["query", output, "a file"],
        "optimize": ["optimize", output],
        "retry": ["retry", "JOB"],
        "cancel": ["cancel", "JOB"],
        "queues": ["queues"],
        "worker status": ["worker", "status"],
        "dead list": ["dead", "list", "cpu"],
        "dead show": ["dead", "show", "cpu", queue.dead()[0].id],
        "models": ["models"],
        "models show": ["models", "show", str(tiny_encoder)],
        "models verify": ["models", "verify", str(tiny_encoder)],
        "models pull": ["models", "pull", str(tiny_encoder)],
    }
    documented = documented_fields()
    assert documented.keys() == commands.keys()
    monkeypatch.setenv("LADING_ROOTS", str(tiny_encoder))
    settings = load_settings()
    worker = Worker(
        pools.find(pools.load(), "cpu"), settings, Broker.connect(settings.broker_url), Registry(settings.jobs)
    )
    worker.models.preload(Preload("encode", str(tiny_encoder), RequestOptions()))
    worker.broker.alive("cpu", worker.name)
    worker.broker.publish_report("cpu", worker.name, worker.report())
    worker.residents.close()
    job = ""
    for heading, command in commands.items():
        assert main([job if word == "JOB" else word for word in [*command, "--json"]]) == 0
        printed = json.loads(capsys.readouterr().out)
        fields = printed[0] if isinstance(printed, list) else printed
        if heading == "submit, --submit":
            job = fields["job"]
        if heading == "status without argument":
            fields = {*fields, *fields["jobs"][0], *fields["pools"][0]}
        if heading == "worker status":
            fields = {*fields, *fields["models"][0]}
        if heading == "models verify":
            fields = {*fields, *fields["outputs"][0]}
        assert sorted(documented[heading]) == sorted(fields), heading


def test_the_manual_s_job_is_valid() -> None:
    """Every YAML block of the manual that shows a job is a job."""
    blocks = [block for language, block in FENCE.findall((ROOT / "docs/cli.md").read_text()) if language == "yaml"]
    assert blocks
    for block in blocks:
        spec = from_dict(yaml.safe_load(block))
        assert spec.steps
