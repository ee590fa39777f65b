"""Settings: four layers, each over the one before, and every misspelling named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from lading.config import settings
from lading.config.errors import UsageError


def in_folder(folder: Path, text: str, **environ: str) -> settings.Settings:
    (folder / "settings.yaml").write_text(text)
    return settings.load({"LADING_CONFIG_DIR": str(folder), **environ})


def test_packaged_defaults_give_every_setting():
    """Without files and variables each setting has the value of the packaged defaults.yaml."""
    found = settings.load({"HOME": "/home/x"})
    assert (found.batch_tokens_cpu, found.batch_tokens_cuda, found.threads, found.offline) == (4096, 65536, 0, False)
    assert found.fold_interval_s == 1.0
    assert found.cache_dir == Path("~/.cache/lading").expanduser()
    assert found.batch_tokens("cuda:1") == 65536
    assert found.window(4096) == 16 * 4096
    assert settings.load({"LADING_WINDOW_TOKENS": "5"}).window(4) == 5


def test_environment_over_folder_over_defaults(tmp_path: Path):
    """A variable beats the file, the file beats the defaults, and what neither names stays."""
    found = in_folder(tmp_path, "threads: 3\nbatch_tokens_cpu: 8\nfold_interval_s: 2\n", LADING_THREADS="5")
    assert (found.threads, found.batch_tokens_cpu, found.fold_interval_s, found.batch_tokens_cuda) == (5, 8, 2.0, 65536)


def test_environment_is_read_by_type():
    """Variables are text and become the type of their setting; every one of them can be set."""
    given = {"batch_tokens_cpu": "1", "batch_tokens_cuda": "2", "window_tokens": "3", "threads": "4"}
    given |= {"fold_interval_s": "0.5", "cache_dir": "/c", "offline": "TRUE", "broker_url": "redis://q", "lease_s": "9"}
    given |= {"max_waiting_requests": "5", "result_ttl_s": "6", "jobs": "s3://b/jobs/", "sweep_interval_s": "3"}
    given |= {
        "grace_s": "2",
        "exit_when_idle_s": "7",
        "roots": "/m",
        "metrics_port": "9464",
        "metrics_bind": "::1",
        "price_per_hour": "2",
        "capacity": "spot",
        "log_format": "json",
    }
    found = settings.load({f"LADING_{key.upper()}": value for key, value in given.items()})
    expected = (1, 2, 3, 4, 0.5, Path("/c"), True, "redis://q", 9.0, "s3://b/jobs", 3.0, 2.0, 7.0, 6, 5, "/m")
    expected += (9464, "::1", 2.0, "spot", "json")
    assert dataclasses.astuple(found) == expected
    assert settings.load({"XDG_CACHE_HOME": "/x"}).cache_dir == Path("/x/lading")
    assert settings.load({"XDG_DATA_HOME": "/x"}).jobs == "/x/lading/jobs"
    assert settings.load({"LADING_JOBS": "~/jobs"}).jobs == str(Path("~/jobs").expanduser())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thread: 3", "settings.yaml: unknown key 'thread'; did you mean 'threads'?"),
        ("threads: true", "settings.yaml: threads: expected a whole number, found True"),
        ("threads: 1.5", "settings.yaml: threads: expected a whole number, found 1.5"),
        ("offline: 1", "settings.yaml: offline: expected true or false, found 1"),
        ("fold_interval_s: .nan", "settings.yaml: fold_interval_s: must be at least 0, found nan"),
        ("metrics_port: 65536", "settings.yaml: metrics_port: must be at most 65535, found 65536"),
        ("capacity: Spot", "settings.yaml: capacity: 'Spot' is none of on-demand, spot; did you mean 'spot'?"),
        ("batch_tokens_cpu: 0", "settings.yaml: batch_tokens_cpu: must be at least 1, found 0"),
        ("log_format: xml", "settings.yaml: log_format: 'xml' is none of auto, console, json"),
        ("threads: 1\nthreads: 2", "settings.yaml, line 2: not valid YAML: the key 'threads' is there twice"),
    ],
)
def test_a_wrong_file_names_file_and_key(tmp_path: Path, text: str, message: str):
    """An unknown key or a value of the wrong type is an error with file, key and remedy."""
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path}/{message}")):
        in_folder(tmp_path, text)


def test_a_wrong_folder_is_said(tmp_path: Path):
    """A folder that is not there, has no settings.yaml, or has one under another name is never taken for empty."""
    environ = {"LADING_CONFIG_DIR": str(tmp_path)}
    with pytest.raises(UsageError, match=r"has neither settings\.yaml nor pools\.yaml"):
        settings.load(environ)
    (tmp_path / "setting.yml").write_text("threads: 1")
    with pytest.raises(UsageError, match=r"setting\.yml: not a file Lading reads; did you mean 'settings\.yaml'"):
        settings.load(environ)
    with pytest.raises(UsageError, match="is not a folder"):
        settings.load({"LADING_CONFIG_DIR": str(tmp_path / "none")})


def test_a_wrong_variable_names_itself():
    """A value that does not parse, and a name that is nearly a setting's, are errors; other programs' names are left alone."""
    with pytest.raises(UsageError, match="LADING_THREADS: threads: expected a whole number, found 'many'"):
        settings.load({"LADING_THREADS": "many"})
    with pytest.raises(UsageError, match="LADING_OFFLINE: offline: expected true or false, found 'yep'"):
        settings.load({"LADING_OFFLINE": "yep"})
    with pytest.raises(
        UsageError, match="LADING_THREDS: unknown setting in the environment; did you mean 'LADING_THREADS'"
    ):
        settings.load({"LADING_THREDS": "1"})
    settings.load({"LADING_SERVICE_HOST": "10.0.0.1", "LADING_PORT_8080_TCP": "tcp://", "LADING_FAILPOINT": "x=kill"})


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("LADING_ATENTION", "LADING_ATTENTION"),
        ("LADING_LINEAER", "LADING_LINEAR"),
        ("LADING_DEBUGG", "LADING_DEBUG"),
        ("LADING_CONFIG", "LADING_CONFIG_DIR"),
        ("LADING_FAIL_POINT", "LADING_FAILPOINT"),
    ],
)
def test_a_misspelt_variable_that_is_no_setting_is_named_too(misspelt: str, meant: str):
    """A switch read elsewhere would be off in silence if its misspelling passed; spelt right, it is nobody's mistake."""
    with pytest.raises(UsageError, match=f"{misspelt}: unknown setting in the environment; did you mean '{meant}'"):
        settings.load({misspelt: "1"})
    settings.load({meant: ""})


def test_every_variable_that_the_code_reads_is_known():
    """A LADING_ variable that some module reads is a setting or listed beside them, or its misspellings would pass."""
    root = Path(__file__).parents[1]
    files = [
        file for room in ("adapters", "cli", "config", "pipelines", "workers") for file in root.glob(f"{room}/*.py")
    ]
    read = {name for file in files for name in re.findall(r"\"(LADING_[A-Z_]*[A-Z])\"", file.read_text())}
    assert {"LADING_CONFIG_DIR", "LADING_DEBUG"} <= read
    known = {f"LADING_{field.name.upper()}" for field in dataclasses.fields(settings.Settings)}
    assert read - known == set(settings._NOT_SETTINGS)
