"""The main job as one writes it by hand with sentence-transformers: a Parquet file in, a LanceDB table out.

    python benchmarks/reference_job.py CORPUS.parquet FOLDER --model FOLDER [--dtype float32] [--batch 32]

Prints one JSON object: import and load apart from the job. Run by encode.py, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()

    began = time.perf_counter()
    import lancedb
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from sentence_transformers import SentenceTransformer

    imported = time.perf_counter()
    torch.set_num_threads(wanted.threads)
    model = SentenceTransformer(str(wanted.model), device="cpu", model_kwargs={"dtype": wanted.dtype})
    model.max_seq_length = 512
    loaded, cpu = time.perf_counter(), time.process_time()
    corpus = pq.read_table(wanted.corpus)
    vectors = model.encode(
        corpus["text"].to_pylist(), batch_size=wanted.batch, normalize_embeddings=True, show_progress_bar=False
    )
    column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])
    lancedb.connect(wanted.folder).create_table("docs", corpus.append_column("vector", column))
    ended = time.perf_counter()
    seconds = {"import_s": imported - began, "load_s": loaded - imported, "elapsed_s": ended - loaded}
    print(json.dumps(seconds | {"cpu_s": time.process_time() - cpu, "rows": len(corpus)}))


if __name__ == "__main__":
    main()
