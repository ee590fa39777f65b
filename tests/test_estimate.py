"""What `lading plan` foretells is what the run then does, where the sample is the whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lading.pipelines.job import draft
from lading.pipelines.spec import JobSpec, PolicySpec, SinkSpec, SourceSpec, StepSpec
from lading.workers.estimate import estimate
from lading.workers.run import run


@pytest.mark.parametrize("long_text", ["truncate", "chunk", "reject"])
def test_the_plan_of_a_sampled_corpus_is_exact(tiny_encoder: Path, tmp_path: Path, long_text: str) -> None:
    """Rows out, tokens and rejects, those that only the tokenizer finds included, are the run's own."""
    texts = [None, " ", "a cat", "a dog on the mat " * 60, "a file"]
    pq.write_table(pa.table({"key": list("abcde"), "text": texts}), tmp_path / "in.parquet")
    spec = JobSpec(
        source=SourceSpec(paths=(f"{tmp_path}/in.parquet",), id="key"),
        steps=(StepSpec(verb="encode", model=str(tiny_encoder), text=("text",)),),
        sink=SinkSpec(to=f"parquet://{tmp_path}/out"),
        policy=PolicySpec(long_text=long_text),
    )
    told = estimate(draft(spec))
    found = run(draft(spec), device="cpu", threads=1)
    assert (told.sampled_rows, told.rows) == (5, found.rows_in)
    assert told.sampled_rejects == found.rejected == (3 if long_text == "reject" else 2)
    assert (told.rows_out, told.tokens) == (found.rows_out, found.tokens)
