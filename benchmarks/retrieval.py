"""Does it find the same? The demo's check, by Lading and by sentence-transformers on the same rows.

    python benchmarks/retrieval.py [--rows 2000] [--quick] [--json]

Each docstring's own name is the query; recall@1 is how often that docstring is the nearest of all. Lading's figure goes
the whole way: the command, the LanceDB table, `lading query`'s search. In float32 the two must be equal.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from benchmarks.candidates import minilm
from benchmarks.report import Report


def reference(model: Path, docs: Path) -> float:
    """recall@1 of sentence-transformers, exact search."""
    from sentence_transformers import SentenceTransformer

    rows = pq.read_table(docs).to_pydict()
    encoder = SentenceTransformer(str(model), device="cpu")
    bodies, names = (
        encoder.encode(rows[column], normalize_embeddings=True, show_progress_bar=False) for column in ("body", "name")
    )
    return float(((names @ bodies.T).argmax(axis=1) == range(len(bodies))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="300 rows")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    wanted = parser.parse_args()
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")
    import demo
    import stdlib_docs

    report, model = Report(wanted.json), minilm()
    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder, "docs.parquet")
        rows = stdlib_docs.write(docs, 300 if wanted.quick else wanted.rows)
        report.title(f"recall@1 of {rows:,} docstrings by their names")
        expected = reference(model, docs)
        report.line("sentence-transformers float32", expected, "recall@1")
        for precision in ("float32", "bfloat16"):
            output = f"lancedb://{folder}/{precision}/docs"
            command = [sys.executable, "-m", "lading.cli", "encode", str(docs), "--id", "id", "--text", "body"]
            command += ["--model", str(model), "--to", output, "--precision", precision, "--quiet"]
            subprocess.run(command, check=True)
            found = demo.recall_at_1(docs, output)
            report.line(f"lading {precision}", found, "recall@1", expected)
            if precision == "float32" and found != expected:
                sys.exit(f"lading finds {found:.4f}, sentence-transformers {expected:.4f}")


if __name__ == "__main__":
    main()
