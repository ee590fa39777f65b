"""What is typed, what is printed where, and which exit code comes back."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.cli import jobs, main
from lading.cli.options import override, quick_spec
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec, load

ROWS = 40
TEXTS = [f"the file number {n} is opened and read" for n in range(ROWS)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 rows, one of them blank."""
    path = tmp_path / "docs.parquet"
    bodies = ["  ", *TEXTS[1:]]
    pq.write_table(pa.table({"doc_id": [f"d{n}" for n in range(ROWS)], "body": bodies}), path)
    return path


@pytest.fixture
def encode(corpus: Path, tiny_encoder: Path, tmp_path: Path) -> list[str]:
    """A command line that embeds the corpus into a LanceDB table, four shards."""
    to = f"lancedb://{tmp_path}/db/docs"
    return [
        "encode",
        str(corpus),
        "--id",
        "doc_id",
        "--text",
        "body",
        "--model",
        str(tiny_encoder),
        "--to",
        to,
        "--shard-rows",
        "10",
    ]


# -- from the options to the spec


def test_options_fill_the_fields_of_their_name() -> None:
    """Every option of a quick verb lands in the spec's field of the same name, whichever section that is in."""
    given = {
        "paths": ("a.parquet", "b.parquet"), "id": "doc_id", "keep": ("title",), "check_ids": False, "limit": 7, "shard_rows": 100,
        "text": ("body",), "model": "M", "dims": 64, "precision": "bfloat16", "vector_type": "int8", "prompt": "query",
        "outputs": ("dense", "sparse"), "top_k": 3, "threshold": 0.5, "token_pooling": None,
        "to": "lancedb://db/t", "on_existing": "append", "max_rejects": 0, "long_text": "chunk", "chunk_tokens": 64,
        "device": "cpu", "as_json": True,
    }  # fmt: skip
    assert quick_spec("encode", given) == JobSpec(
        source=SourceSpec(paths=("a.parquet", "b.parquet"), id="doc_id", keep=("title",), check_ids=False, limit=7),
        steps=(
            StepSpec(
                verb="encode",
                model="M",
                text=("body",),
                dims=64,
                precision="bfloat16",
                vector_type="int8",
                prompt="query",
                outputs=("dense", "sparse"),
                top_k=3,
                threshold=0.5,
            ),
        ),
        sink=SinkSpec(to="lancedb://db/t", on_existing="append"),
        policy=PolicySpec(max_rejects=0, long_text="chunk", chunk_tokens=64, shard_rows=100),
    )


def test_what_is_not_given_is_left_to_the_spec() -> None:
    """Options left out do not reach the spec, so that its own defaults rule."""
    given = {
        "paths": ("a.csv",),
        "text": ("text",),
        "model": "M",
        "to": "parquet://out",
        "id": None,
        "keep": (),
        "limit": None,
    }
    plain = JobSpec(
        source=SourceSpec(paths=("a.csv",)),
        steps=(StepSpec(verb="encode", model="M", text=("text",)),),
        sink=SinkSpec(to="parquet://out"),
    )
    assert quick_spec("encode", given) == plain


@pytest.mark.parametrize(
    "verb", [jobs.encode, jobs.score, jobs.extract, jobs.run, jobs.plan], ids=lambda verb: verb.name
)
def test_help_repeats_the_defaults_of_the_spec(verb: click.Command) -> None:
    """A default that the help names is the default that the spec has."""
    defaults = {
        field.name: field.default
        for part in (SourceSpec, StepSpec, SinkSpec, PolicySpec)
        for field in dataclasses.fields(part)
    }
    compared = 0
    for option in verb.params:
        said = re.search(r"\[default: (\S+)\]", getattr(option, "help", None) or "")
        if option.name not in defaults or said is None:
            continue
        default = defaults[option.name]
        if option.name == "check_ids":
            default = "check-ids" if default else "no-check-ids"
        if isinstance(default, str | int) and default and said[1] != "all":
            assert said[1] == str(default), option.name
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("verb", [jobs.encode, jobs.score, jobs.extract], ids=lambda verb: verb.name)
def test_a_verb_offers_what_it_takes(verb: click.Command) -> None:
    """Only `encode` offers chunks: the others would refuse them."""
    offered = {option.name: option for option in verb.params}
    chunks = verb is jobs.encode
    assert ("chunk_tokens" in offered, "chunk_overlap" in offered) == (chunks, chunks)
    words = offered["long_text"].type
    assert isinstance(words, click.Choice)
    assert set(words.choices) - {"truncate", "reject"} == ({"chunk"} if chunks else set())


def test_options_stand_in_place_of_what_the_file_says(tmp_path: Path) -> None:
    """`run` and `plan` take the file's word but for the options that are given."""
    path = tmp_path / "job.yaml"
    path.write_text(
        "source: {paths: [a.parquet], limit: 9}\n"
        "steps:\n- encode: {model: M, text: body, dims: 64}\n"
        "sink: {to: 'parquet://out'}\n"
    )
    spec = load(path)
    changed = override(spec, {"dims": 32, "limit": None, "on_existing": "append", "as_json": True})
    assert changed.steps[0].dims == 32
    assert changed.sink.on_existing == "append"
    assert changed.source == spec.source
    assert override(spec, {}) == spec


# -- a job from the shell


def test_a_job_ends_with_its_summary_and_zero(encode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A finished job exits with 0; the summary goes to standard output, the rest to standard error."""
    assert main([*encode, "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["state"], summary["rows_in"], summary["rows_done"], summary["rejected"]) == (
        "finished",
        ROWS,
        ROWS - 1,
        1,
    )
    assert "model" in err


def test_the_same_command_twice_does_nothing(encode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Repeating a finished job's command exits with 0 and says that there is nothing to do."""
    assert main([*encode, "--quiet"]) == 0
    assert main(encode) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_quiet_prints_nothing(encode: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """With --quiet a job that goes well prints nothing at all."""
    assert main([*encode, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_a_dry_run_writes_nothing(encode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run shows rows, shards, tokens, bytes and the model, and leaves no trace."""
    before = sorted(tmp_path.rglob("*"))
    assert main([*encode, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows"], shown["shards"], shown["state"]) == (ROWS, 4, "new")
    assert "folder " in shown["model"]
    assert shown["tokens"] > ROWS
    assert shown["bytes_out"] > (ROWS - 1) * 32 * 4
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_shows_what_a_file_declares(
    corpus: Path, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lading plan` counts the rows of a declared job, under the options that stand in place of the file's."""
    job = tmp_path / "job.yaml"
    job.write_text(
        json.dumps(
            {
                "source": {"paths": [str(corpus)], "id": "doc_id"},
                "steps": [{"encode": {"model": str(tiny_encoder), "text": "body"}}],
                "sink": {"to": f"parquet://{tmp_path}/out"},
            }
        )
    )
    assert main(["plan", str(job), "--limit", "12"]) == 0
    assert "12 rows" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(["run", str(job), "--limit", "12", "--quiet"]) == 0
    assert pq.read_table(tmp_path / "out").num_rows == 11


def test_an_output_is_looked_at(encode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """status, rejects, query and optimize work on the path that --to named, for people and as JSON."""
    assert main([*encode, "--quiet"]) == 0
    output = f"{tmp_path}/db/docs"
    assert main(["status", output, "--json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["state"], status["rows_done"], status["rejected"]) == ("finished", ROWS - 1, 1)
    assert main(["rejects", output, "--json"]) == 0
    (reject,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (reject["id"], reject["code"]) == ("d0", "empty-text")
    assert main(["query", output, TEXTS[7], "--top", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert len(hits) == 3
    assert {"id", "score", "text", "columns"} <= hits[0].keys()
    assert main(["optimize", output]) == 0
    capsys.readouterr()
    for verb in (["status", output], ["rejects", output], ["query", output, "a file"]):
        assert main(verb) == 0
        assert "d0" in capsys.readouterr().out or verb[0] != "rejects"


# -- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "x.parquet", "--model", "M", "--to", "lancedb://db/t", "--precision", "float3"], "float3"),
        (["encode", "--model", "M", "--to", "lancedb://db/t"], "SOURCE"),
        (["embed"], "embed"),
        (["encode", "nowhere.parquet", "--model", "M", "--to", "lancedb://db/t"], "nowhere.parquet"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["status", "nowhere"], "nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_command_is_refused_with_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is refused before any work exits with 2, names what is wrong on standard error, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(
    device: str, encode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job for an unknown or missing device exits with 2, names it, and leaves neither an output nor a job behind."""
    before = sorted(tmp_path.rglob("*"))
    assert main([*encode, "--device", device]) == 2
    assert f"device {device}" in capsys.readouterr().err.replace("'", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_too_many_rejects_leave_a_job_unfinished(encode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Above --max-rejects the job stops with 3 and says where the rejects are listed."""
    assert main([*encode, "--max-rejects", "0"]) == 3
    out, err = capsys.readouterr()
    assert "rejects" in out + err


def _fails(given: object) -> None:
    raise RuntimeError("the mast is broken")


def test_a_defect_is_one_message_and_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected exception exits with 1 and one message to report; LADING_DEBUG=1 adds the traceback."""
    monkeypatch.setattr(jobs.plan, "callback", lambda **given: _fails(given))
    monkeypatch.delenv("LADING_DEBUG", raising=False)
    assert main(["plan", "job.yaml"]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError: the mast is broken" in err
    assert "report" in err
    assert "Traceback" not in err
    monkeypatch.setenv("LADING_DEBUG", "1")
    assert main(["plan", "job.yaml"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_without_the_worker_extra_a_verb_says_what_to_install(tmp_path: Path, encode: list[str]) -> None:
    """Where torch is not installed, running a job exits with 2 and names the extra; the quick verbs' --dry-run still works."""
    hide = "import sys; sys.modules['torch'] = None; from lading.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-I", "-c", hide, *encode], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "lading[worker]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "db").exists()
    dry = subprocess.run([sys.executable, "-I", "-c", hide, *encode, "--dry-run"], capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`lading completion` prints a script that asks lading itself what fits."""
    assert main(["completion", shell]) == 0
    assert "_LADING_COMPLETE" in capsys.readouterr().out


def test_completion_knows_verbs_and_options() -> None:
    """Asked as the bash script asks, lading answers with the verbs and options that fit."""
    ask = {"_LADING_COMPLETE": "bash_complete", "COMP_WORDS": "lading enc", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'lading'; from lading.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, env={**os.environ, **ask})
    assert "encode" in done.stdout
