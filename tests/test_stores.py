"""From a URL to a store: what is said where the store's package or the scheme is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import _registry

from lading.cli import main


@pytest.fixture
def encode(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command without source and --to, where neither s3fs nor paramiko is installed."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"text": ["a file is opened"]}), "in.parquet")
    for scheme, package in (("s3", "s3fs"), ("sftp", "paramiko")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
        monkeypatch.delitem(_registry, scheme, raising=False)
    return ["encode", "--model", str(tiny_encoder)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/x", "pip install s3fs"),
        ("sftp://host/x", "pip install paramiko"),
        ("s4://bucket/x", "unknown scheme 's4'; did you mean 's3"),
        ("memry://x/y", "unknown scheme 'memry'; did you mean 'memory'"),
    ],
)
def test_a_store_that_cannot_be_opened_says_what_to_do(
    url: str, said: str, encode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As source, as output, and as what status looks at: exit code 2, and the package to install or the nearest scheme."""
    for command in (
        [*encode, url, "--to", "parquet://out"],
        [*encode, "in.parquet", "--to", f"parquet://{url}"],
        [*encode, "in.parquet", "--to", f"lancedb://{url}"],
        ["status", url],
        ["query", f"parquet://{url}", "a file"],
    ):
        assert main(command) == 2, command
        err = capsys.readouterr().err
        assert url in err
        assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]
