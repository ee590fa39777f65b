"""What a corpus takes, on paper: prints the tables of docs/scale.md from measured constants and named assumptions.

    python benchmarks/scale.py

Pure arithmetic; nothing is run. Every constant says where it was measured, in words that a test finds there, or that it is assumed.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """`file` and `text`: the document and the words in it that have the figure; "" for what is assumed."""

    value: float
    unit: str
    what: str
    file: str = ""
    text: str = ""


BENCHMARKS, REDIS, STORES = "docs/benchmarks.md", "docs/redis.md", "docs/object-stores.md"
MEASURED = {
    "message": Constant(973, "B", "a shard's message in flight, in Redis", REDIS, "| a shard in flight | 973 |"),
    "row_cpu": Constant(7.7e-6, "s", "CPU of a row beside tokenising and forward, Parquet to LanceDB", BENCHMARKS, "7.7 µs"),
    "tokenised": Constant(0.5e6, "/s", "tokens that a core makes", BENCHMARKS, "| tokens that a core makes in a second | 0.5 M ("),
    "sweep": Constant(0.005, "s", "a pass of the scheduler over a million shards", BENCHMARKS, "1,000,000 shards | 0.005 s"),
    "planned": Constant(43, "B", "a shard in plan.json", BENCHMARKS, "| a shard in plan.json | 43 B |"),
    "held": Constant(221, "B", "the same in the memory of a process", BENCHMARKS, "| a shard in the memory of a process that reads the plan | 221 B |"),
    "marker": Constant(788, "B", "a shard's marker, into LanceDB", BENCHMARKS, "| a shard's marker, into LanceDB | 788 B |"),
    "fragment": Constant(167, "B", "a fragment, in each version of a table", BENCHMARKS, "| a fragment in each version of a table | 167 B |"),
    "requests": Constant(19, "", "requests to the store, a shard into LanceDB", STORES, "19 into LanceDB"),
    "loading": Constant(1.04, "s", "a model of 436 MB from disk", BENCHMARKS, "1.04 / 1.34 s"),
    "cpu": Constant(16_579, "/s", "tokens of MiniLM in bfloat16, a core of Zen 5 (33,158 with two)", BENCHMARKS, "33,158 a second"),
}  # fmt: skip
ASSUMED = {
    "document": Constant(600, "tokens", "a document: FineWeb has 15 T tokens in some 25 B rows"),
    "text": Constant(2600, "B", "the text of a document"),
    "flop": Constant(0.65e9, "FLOP", "a token of bge-m3 (302 M parameters outside of its embeddings), 512 tokens long"),
    "mfu": Constant(0.35, "", "of a GPU's peak that is reached"),
    "h100": Constant(989e12, "FLOP/s", "peak of an H100 in bfloat16"),
    "l4": Constant(121e12, "FLOP/s", "peak of an L4 in bfloat16"),
    "h100_hour": Constant(2.50, "$", "an H100 for an hour"),
    "l4_hour": Constant(0.70, "$", "an L4 for an hour"),
    "core_hour": Constant(0.04, "$", "a core of a CPU for an hour"),
    "vector": Constant(2048, "B", "1,024 dimensions in float16; hardly compressible"),
    "id": Constant(32, "B", "a row's id, before compression"),
    "put": Constant(5e-6, "$", "a request to the store, all at the price of a PUT"),
    "node": Constant(300, "s", "from a pod that waits to a node with driver, image and model"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Corpus:
    name: str
    documents: int
    jobs: int  # that it is cut into
    gpus: int  # H100s at work at once
    shard_rows: int


CORPORA = (
    Corpus("1 M", 10**6, 1, 1, 4096),
    Corpus("1 B", 10**9, 1, 16, 16_384),
    Corpus("25 B", 25 * 10**9, 25, 64, 16_384),
)
PULL, WORKERS_FACTOR = 4, 2  # pull_shards of a GPU pool; the window is twice what all workers take
GRACE_S = {"AWS": 85, "GCP": 5}  # what the chart leaves a worker of a spot machine's notice: docs/autoscaling.md


def m(name: str) -> float:
    return (MEASURED | ASSUMED)[name].value


def speed(gpu: str) -> float:
    """Tokens a second: peak x share that is reached / operations of a token."""
    return m(gpu) * m("mfu") / m("flop")


def rows_in(gpu: str, seconds: float) -> int:
    """Rows of a document each that a GPU does in so long; two figures, rounded down."""
    rows = int(speed(gpu) / m("document") * seconds)
    step = 10 ** (len(str(rows)) - 2)
    return rows // step * step


def of(corpus: Corpus, fold_interval_s: float = 1.0) -> dict[str, float]:
    """Every derived figure, in base units."""
    tokens = corpus.documents * m("document")
    shards = -(-corpus.documents // corpus.shard_rows)
    each = shards / corpus.jobs  # a job's shards
    busy_s = tokens / speed("h100") / corpus.gpus
    folds = min(shards, busy_s / fold_interval_s)
    fragments = each  # of a table that nobody compacted, at a job's end
    return {
        "tokens": tokens,
        "h100_hours": tokens / speed("h100") / 3600,
        "l4_hours": tokens / speed("l4") / 3600,
        "core_hours": tokens / m("cpu") / 3600,
        "days": busy_s / 86_400,
        "vectors": corpus.documents * (m("vector") + m("id")),
        "shards": shards,
        "shard_s": corpus.shard_rows * m("document") / speed("h100"),
        "shard_l4_s": corpus.shard_rows * m("document") / speed("l4"),
        "shard_bytes": corpus.shard_rows * (m("vector") + m("id")),
        "tokenising": speed("h100") / m("tokenised"),
        "rest": corpus.gpus * speed("h100") / m("document") * m("row_cpu"),
        "window": WORKERS_FACTOR * corpus.gpus * PULL * m("message"),
        "as_documents": corpus.documents * m("message"),
        "documents_a_second": corpus.gpus * speed("h100") / m("document"),
        "read": corpus.gpus * speed("h100") / m("document") * m("text"),
        "shards_a_second": corpus.gpus * speed("h100") / m("document") / corpus.shard_rows,
        "plan": each * m("planned"),
        "held": each * m("held"),
        "markers": shards * m("marker"),
        "requests": shards * m("requests"),
        "ids": corpus.documents / corpus.jobs * 16,
        "version": fragments * m("fragment"),
        "versions": folds * fragments * m("fragment") / 2,
        "cold": corpus.gpus * (m("node") + m("loading")) / 3600,
    }


def big(value: float, unit: str = "") -> str:
    """Two or three figures and a prefix of thousands: 2.08 TB, 611, 0.04 s."""
    for size, prefix in ((1e12, "T"), (1e9, "G" if unit == "B" else "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return (
        f"{value:.1g} {unit}".rstrip()
        if value < 0.1
        else f"{value:.2g} {unit}".rstrip()
        if value < 10
        else f"{value:.0f} {unit}".rstrip()
    )


def dollars(value: float) -> str:
    return f"${value:,.0f}" if value >= 10 else f"${value:.2f}"


def figure(one: Constant) -> str:
    if one.unit == "$":
        return f"${one.value * 1e6:.0f} a million" if one.value < 1e-3 else dollars(one.value)
    return f"{one.value * 1e6:.1f} µs" if one.unit == "s" and one.value < 1e-3 else big(one.value, one.unit)


def tables() -> dict[str, list[str]]:
    """Markdown by the name of the table."""
    made = {
        "measured": ["| | | where |", "|---|---|---|"],
        "assumed": ["| | |", "|---|---|"],
    }
    for one in MEASURED.values():
        made["measured"].append(f"| {one.what} | {figure(one)} | [{one.file[5:]}]({one.file[5:]}) |")
    for one in ASSUMED.values():
        made["assumed"].append(f"| {one.what} | {figure(one)} |")
    found = {corpus: of(corpus) for corpus in CORPORA}
    slower = {corpus: of(corpus, 60.0) for corpus in CORPORA}

    def row(what: str, *figures: str) -> str:
        return f"| {what} | " + " | ".join(figures) + " |"

    def rows(what: str, name: str, unit: str = "") -> str:
        return row(what, *(big(figures[name], unit) for figures in found.values()))

    head = [row("documents", *(corpus.name for corpus in CORPORA)), "|---" * (len(CORPORA) + 1) + "|"]
    made["work"] = [
        *head,
        rows("tokens", "tokens"),
        row(f"H100-hours at {big(speed('h100'))} tokens/s; dollars",
            *(f"{big(one['h100_hours'])}; {dollars(one['h100_hours'] * m('h100_hour'))}" for one in found.values())),
        row(f"L4-hours at {big(speed('l4'))} tokens/s; dollars",
            *(f"{big(one['l4_hours'])}; {dollars(one['l4_hours'] * m('l4_hour'))}" for one in found.values())),
        row("MiniLM on CPUs instead: core-hours; dollars",
            *(f"{big(one['core_hours'])}; {dollars(one['core_hours'] * m('core_hour'))}" for one in found.values())),
        row("H100s; days", *(f"{corpus.gpus}; {one['days']:.2g}" for corpus, one in found.items())),
        row("cold starts of all of them, once: H100-hours; of all hours",
            *(f"{one['cold']:.2g}; {100 * one['cold'] / (one['cold'] + one['h100_hours']):.2g} %" for one in found.values())),
        rows("cores that tokenise, for each H100", "tokenising"),
        rows("cores for all else but the forward pass, for all H100s", "rest"),
    ]  # fmt: skip
    made["bytes"] = [
        *head,
        row("jobs; `shard_rows`", *(f"{corpus.jobs}; {corpus.shard_rows:,}" for corpus in CORPORA)),
        rows("vectors and ids in the output", "vectors", "B"),
        rows("shards", "shards"),
        row("a shard takes an H100; an L4", *(f"{one['shard_s']:.2g} s; {one['shard_l4_s']:.0f} s" for one in found.values())),
        rows("a Parquet part, one a shard", "shard_bytes", "B"),
        rows("Redis: the window of shards", "window", "B"),
        rows("Redis, if each document were a message", "as_documents", "B"),
        rows("messages a second", "shards_a_second"),
        rows("documents that are read, a second", "documents_a_second"),
        rows("text that is read, a second", "read", "B"),
        rows("a job's plan.json", "plan", "B"),
        rows("the same in the memory of each process on the job", "held", "B"),
        rows("markers of all jobs", "markers", "B"),
        row("requests to the store; dollars",
            *(f"{big(one['requests'])}; {dollars(one['requests'] * m('put'))}" for one in found.values())),
        rows("memory of the scan for double ids, a job", "ids", "B"),
        rows("LanceDB, not compacted: each version's list of fragments", "version", "B"),
        rows("all such lists, a fold every second", "versions", "B"),
        row("all such lists, `fold_interval_s: 60`", *(big(one["versions"], "B") for one in slower.values())),
    ]  # fmt: skip
    made["grace"] = ["| rows that fit into the grace | H100 | L4 |", "|---|---|---|"]
    for cloud, grace_s in GRACE_S.items():
        made["grace"].append(row(f"{cloud}, {grace_s} s", *(f"{rows_in(gpu, grace_s):,}" for gpu in ("h100", "l4"))))
    return made


if __name__ == "__main__":
    for name, lines in tables().items():
        print(f"\n{name}\n\n" + "\n".join(lines))
