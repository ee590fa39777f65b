"""The verbs that look at the queues of the pools (queues), and at the messages that were given up (dead)."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any

import click

from ..config.words import counted
from . import options as opt
from .progress import duration

if TYPE_CHECKING:
    from ..schedulers.connection import Broker
    from ..schedulers.queues import Counts, DeadLetter, Queue

KINDS = ("requests", "shards")
POOL = click.argument("pool", metavar="POOL")
LETTERS = click.argument("letters", metavar="ID...", nargs=-1)
ALL = click.option("--all", "everything", is_flag=True, help="All of the pool.")


@click.command()
@opt.options(opt.JSON)
def queues(as_json: bool) -> None:
    """Show what waits in the queues of each pool.

    Waiting, in flight, the age of the next message, dead letters, and the pool's living workers.
    """
    from ..schedulers.pools import load

    broker = _broker()
    found: list[dict[str, Any]] = []
    for name, pool in load().items():
        counts = {"requests": broker.queue(pool.requests).counts(), "shards": broker.queue(pool.shards).counts()}
        workers = broker.workers(name)
        if not as_json:
            click.echo(f"pool {name}: {counted(workers, 'worker')}")
            for kind, one in counts.items():
                click.echo(f"  {kind + ':':9} {_words(one)}")
        found.append(
            {"pool": name, "workers": workers, **{kind: dataclasses.asdict(one) for kind, one in counts.items()}}
        )
    if as_json:
        click.echo(json.dumps(found))


def _words(one: Counts) -> str:
    """One queue in words, without what is not there."""
    words = [f"{one.waiting:,} waiting", f"{one.in_flight:,} in flight"]
    if one.oldest_age_s is not None:
        words.append(f"the next since {duration(one.oldest_age_s)}")
    if one.dead:
        words.append(counted(one.dead, "dead letter"))
    return ", ".join(words)


@click.group()
def dead() -> None:
    """Look at the messages that were given up, send them again, or drop them.

    A message that no worker understands, or that killed one worker after the other, is put aside with the reason.
    """


@dead.command("list")
@POOL
@click.option("--top", metavar="N", type=opt.COUNT, help="Only the newest N of each queue.  [default: all]")
@opt.options(opt.JSON)
def list_letters(pool: str, top: int | None, as_json: bool) -> None:
    """List the dead letters of POOL, the newest first, with their reasons.

    With --json, one object per line.
    """
    for kind, queue in _queues(pool).items():
        for letter in _letters(queue)[:top]:
            if as_json:
                told = {"id": letter.id, "queue": kind, "when": letter.when, "reason": letter.reason}
                click.echo(json.dumps(told))
            else:
                click.echo(f"{letter.id}  {kind}  {_when(letter)}  {_printable(letter.reason)}")


@dead.command()
@POOL
@LETTERS
@opt.options(opt.JSON)
def show(pool: str, letters: tuple[str, ...], as_json: bool) -> None:
    """Show dead letters of POOL whole: reason, time and message.

    With --json, one object per line, whose message is in base64 if it is not text.
    """
    for kind, queue, letter in _chosen(pool, letters, everything=False, all_too=False):
        if as_json:
            click.echo(json.dumps({"id": letter.id, "queue": kind, **json.loads(letter.entry)}))
            continue
        click.echo(f"{letter.id}: {_printable(letter.reason)}\n  {queue.name}, {_when(letter)}")
        click.echo(_message(letter.raw))


@dead.command()
@POOL
@LETTERS
@ALL
def replay(pool: str, letters: tuple[str, ...], everything: bool) -> None:
    """Send dead letters of POOL again: to the end of the queue they came from, nothing held against them."""
    done = sum(queue.replay([letter]) for _, queue, letter in _chosen(pool, letters, everything))
    click.echo(f"{counted(done, 'message')} sent again")


@dead.command()
@POOL
@LETTERS
@ALL
def drop(pool: str, letters: tuple[str, ...], everything: bool) -> None:
    """Forget dead letters of POOL."""
    done = sum(queue.drop([letter]) for _, queue, letter in _chosen(pool, letters, everything))
    click.echo(f"{counted(done, 'dead letter')} dropped")


def _broker() -> Broker:
    from ..config.settings import load
    from ..schedulers.connection import Broker

    return Broker.connect(load().broker_url)


def _queues(pool: str) -> dict[str, Queue]:
    from ..schedulers.pools import find, load

    found, broker = find(load(), pool), _broker()
    return {"requests": broker.queue(found.requests), "shards": broker.queue(found.shards)}


def _letters(queue: Queue) -> list[DeadLetter]:
    from ..schedulers.queues import MOST_LETTERS

    return queue.dead(0, MOST_LETTERS)


def _chosen(
    pool: str, ids: tuple[str, ...], everything: bool, *, all_too: bool = True
) -> list[tuple[str, Queue, DeadLetter]]:
    """The letters with these ids, in the order in which they died. Raises UsageError if one is not there."""
    from ..config.errors import UsageError

    if everything == bool(ids):
        raise UsageError(f"name dead letters of lading dead list {pool}{', or say --all' if all_too else ''}")
    there = [(kind, queue, letter) for kind, queue in _queues(pool).items() for letter in reversed(_letters(queue))]
    missing = set(ids) - {letter.id for _, _, letter in there}
    if missing:
        raise UsageError(f"pool {pool} has no dead letter {', '.join(sorted(missing))}: lading dead list {pool}")
    return [one for one in there if everything or one[2].id in ids]


def _when(letter: DeadLetter) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.when))


def _printable(text: str) -> str:
    """Text of others on one line, without what a terminal would obey."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _message(raw: bytes) -> str:
    """A message for people: JSON spread out, anything else as Python writes bytes."""
    try:
        return json.dumps(json.loads(raw), indent=2)
    except (ValueError, RecursionError):
        return repr(raw)


VERBS = (queues, dead)
