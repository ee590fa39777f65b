"""What is told in logs: every event by its name, and the one way to tell it. Loads nothing; how it looks is logs.py's matter.

Fields are given at each call, never kept in the thread or its context: one thread serves many shards, and a batch belongs to
several at once, so that whatever a thread remembered would be told of the wrong one.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import NamedTuple

DEBUG, INFO, WARNING, ERROR, CRITICAL = (
    logging.DEBUG,
    logging.INFO,
    logging.WARNING,
    logging.ERROR,
    logging.CRITICAL,
)


class Event(NamedTuple):
    """An event as declared."""

    level: int
    fields: str  # names, with spaces between; times in seconds, sizes in bytes
    meaning: str


_SHARD = "job shard generation model"
_MODEL = "model weights"

# docs/logs.md has the same table; a test compares it with this one, and this one with the calls of `tell`.
EVENTS = {
    # of a shard, by the worker that has it
    "shard taken": Event(INFO, _SHARD, "its message is leased and it will be done here"),
    "shard begun": Event(INFO, _SHARD, "its first rows go to the device"),
    "shard runs alone": Event(WARNING, f"{_SHARD} pieces deaths", "in pieces, after deaths or because the model took no row"),
    "shard raised": Event(ERROR, _SHARD, "running alone it failed in a way that nobody foresaw; with the traceback"),
    "shard superseded": Event(INFO, "job shard generation", "another attempt was first: its rows count, these are dropped"),
    "shard published": Event(INFO, f"{_SHARD} rows rejected tokens seconds", "it has its marker; its rows count from here on"),
    "shard failed": Event(ERROR, f"{_SHARD} why", "it is marked failed; `lading retry` tries it again"),
    "shard acknowledged": Event(INFO, _SHARD, "its message is gone from the queue"),
    "shard given back": Event(INFO, _SHARD, "to the queue, as this worker ends"),
    "shard left": Event(ERROR, f"{_SHARD} why", "nothing of it counts; the scheduler sends it again"),
    "shards set apart": Event(ERROR, "why", "a model took no row of theirs: each runs alone from here on"),
    # of messages
    "leases given back": Event(INFO, "queue leases", "messages to the queue, as this worker ends"),
    "leases ran out": Event(INFO, "queue leases doing", "before they were settled: the messages are with others"),
    "leases not settled": Event(WARNING, "queue leases doing why", "the broker did not answer; they run out instead"),
    "message buried": Event(WARNING, "queue why", "nobody can do it: it is in the dead letters"),
    "dead letter dropped": Event(WARNING, "queue most", "the oldest, as there are too many"),
    # of a job
    "job submitted": Event(INFO, "job pool shards sent", "registered, and its first shards are in the queue"),
    "job retried": Event(INFO, "job shards rows sent", "failed shards and rejected rows are open again"),
    "job folded": Event(INFO, "job rows rejected", "to its end: all of it is in view"),
    "job finished": Event(INFO, "job", "it is closed"),
    "job cancelled": Event(INFO, "job", "nothing more of it is begun"),
    "job unreachable": Event(ERROR, "job why", "it cannot be opened or looked at; tried again later"),
    "job entry damaged": Event(ERROR, "why", "a file under LADING_JOBS cannot be read"),
    "job end unknown": Event(WARNING, "job why", "it is over, and is in no metric"),
    "pace unknown": Event(WARNING, "recipe shard_rows", "how fast the recipe is was not measured: shards have so many rows"),
    "pace unread": Event(INFO, "job why", "of an earlier job: another one may say how fast its recipe is"),
    "fold failed": Event(ERROR, "job why", "what is published is not in view yet; tried again later"),
    "fold costs unknown": Event(INFO, "why", "the broker did not tell what folds have cost"),
    "note not left": Event(WARNING, "note why", "a shard runs without its note against deaths"),
    "note not erased": Event(WARNING, "note why", "the shard may run alone for it"),
    "notes unreadable": Event(WARNING, "job why", "a model is loaded without a look at who died of it"),
    # of a model
    "model loading": Event(INFO, f"{_MODEL} source", "to the device, from host memory or disk"),
    "model loaded": Event(INFO, f"{_MODEL} source seconds bytes", "it is on the device"),
    "model set aside": Event(INFO, f"{_MODEL} reason", "it left the device for host memory"),
    "model evicted": Event(INFO, f"{_MODEL} reason", "it left the device, or host memory, for the disk"),
    "model not set aside": Event(WARNING, f"{_MODEL} why", "host memory did not take it"),
    "model failed": Event(ERROR, f"{_MODEL} why again", "it did not come; `again`: it is tried again"),
    "model raised": Event(ERROR, "model", "looking for a requested one failed unforeseen; with the traceback"),
    "preload failed": Event(ERROR, "model why", "pools.yaml wants it on the device"),
    # of a worker
    "worker starting": Event(INFO, "pool device", "the process has its settings"),
    "worker started": Event(INFO, "pool worker", "it takes shards and requests"),
    "worker stopping": Event(WARNING, "worker note", "it was told to, and takes nothing more"),
    "worker idle": Event(WARNING, "seconds", "there was nothing to do for so long, and it ends"),
    "shards do not fit": Event(WARNING, "needs_s left_s", "into what is left of the grace: they are given back unfinished"),
    "worker stopped": Event(INFO, "worker", "it holds nothing any more"),
    "worker left hanging": Event(CRITICAL, "worker why", "the process ends though a batch did not"),
    "device lost": Event(CRITICAL, "why", "the device fails or hangs: the process ends, to be started again"),
    "thread died": Event(CRITICAL, "thread", "of a defect: the process ends; with the traceback"),
    "worker refused": Event(CRITICAL, "why", "what it needs refuses it: the process ends, for good"),
    "report refused": Event(WARNING, "why", "the broker does not take what `lading worker status` shows"),
    "batch out of memory": Event(WARNING, "tokens why", "it is halved, and the model's batches stay that small"),
    "batch failed": Event(WARNING, "why", "it is halved to find the row"),
    # of requests, by groups
    "requests begun": Event(DEBUG, "model requests", "they wait for the device"),
    "requests answered": Event(DEBUG, "requests", "their results are stored and their messages acknowledged"),
    "requests stored": Event(DEBUG, "table rows requests seconds conflicts", "one commit to a table"),
    "requests refused": Event(INFO, "requests kind why", "told to those who asked"),
    "requests wait": Event(ERROR, "table requests why", "for a table whose store fails; tried again"),
    "requests stalled": Event(ERROR, "why", "none can be taken; tried again"),
    "results not stored": Event(ERROR, "results why", "the leases run out, and somebody does them again"),
    "table raised": Event(ERROR, "table", "a commit failed unforeseen; with the traceback"),
    # of the supervisor
    "metrics served": Event(INFO, "bind port", "/metrics, /healthz and /readyz"),
    "scrape ended early": Event(DEBUG, "why", "who asked the metrics port left, or did not take its answer in time"),
    "scrape raised": Event(ERROR, "", "the metrics port could not answer; with the traceback"),
    "process started": Event(INFO, "program pid", "a worker or the scheduler"),
    "process restarts": Event(WARNING, "program how seconds", "it died, and is started again after a pause"),
    "process killed": Event(ERROR, "program seconds", "it did not end when it was told to"),
    "process unkillable": Event(ERROR, "pid", "it is stuck in the kernel, in a driver say"),
    # of the scheduler, or of the worker that does its part
    "sweep led": Event(INFO, "", "this process sweeps from here on, others wait"),
    "swept": Event(INFO, "restored sent folded ended faults", "a pass that did something; leases, shards, shards, jobs, jobs"),
    "sweep failed": Event(ERROR, "why", "a pass; the next one tries again"),
    "residents unknown": Event(WARNING, "pool why", "what workers hold does not order what is sent"),
    "queues unknown": Event(WARNING, "why", "the broker did not tell what waits"),
    "reports unknown": Event(WARNING, "pool why", "of what workers hold: the newest leave first, busy or not"),
    "broker away": Event(WARNING, "why", "waited for, by all threads"),
    "broker back": Event(WARNING, "seconds", "it was away for so long"),
    # of models as they are found and run
    "recipe from catalogue": Event(INFO, "model key value origin", "a value that the checkpoint leaves open"),
    "hash cache ignored": Event(WARNING, "path why", "it is written anew"),
    "hash cache not kept": Event(WARNING, "why", "model files are hashed each time"),
    "attention chosen": Event(INFO, "kernel device precision", "what computes attention"),
    "attention not native": Event(INFO, "why", "our own kernel cannot run here"),
    "attention slow": Event(WARNING, "why", "no kernel here takes texts of different lengths at once"),
    "linear layers chosen": Event(INFO, "kernel why", "what computes them on the CPU"),
    "linear layers quantised": Event(INFO, "kernel layers", "to int8"),
    "packing checked": Event(INFO, "relative_error", "packed results agree with the model's own"),
    "int8 checked": Event(INFO, "relative_error", "int8 results beside the model's own"),
    "memory not measured": Event(WARNING, "model why", "what the model's batches take"),
    "pairs not shared": Event(WARNING, "model", "its tokenizer joins pairs in a way of its own: queries are tokenised once a pair"),
    # of other libraries
    "message": Event(INFO, "message", "what another library says, at any level"),
    "record unreadable": Event(ERROR, "why", "a record of this logger that could not be written as it was"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """A record's message: for whoever renders records without logs.py, a line of text."""

    event: str
    fields: dict[str, object]

    def __str__(self) -> str:
        fields = " ".join(f"{name}={shown(value)}" for name, value in self.fields.items())
        return f"{self.event}: {fields}" if fields else self.event


def tell(log: logging.Logger, event: str, raised: BaseException | None = None, /, **fields: object) -> None:
    """Log an event of EVENTS at its level, with the traceback of what was `raised`."""
    level = EVENTS[event].level
    if log.isEnabledFor(level):
        log.log(level, Told(event, fields), exc_info=raised, stacklevel=2)


def shown(value: object) -> str:
    """A value in a line for people: in quotes where it would not be read as one word, on one line whatever is in it."""
    text = str(value)
    plain = text.isprintable() and not any(sign in text for sign in " =\"'")
    return text if plain and text else repr(text)
