"""Notes beside the manifest of what a process is about to do with a shard, so that those who come after it dies know.

A note is a file, left before the step and erased after it: what is still there after a process died names the step that
it died in. An orderly end erases them all. They lie beside the manifest because a queue may be flushed. Which rows a struck shard
is to be run in is decided here, purely; running them is not this module's matter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Generator

from ..config.errors import StopJob
from ..config.events import tell
from .folder import Folder

log = logging.getLogger(__name__)

READING = "reading"
BEGUN = "begun"  # from the first row on the device to the marker
PIECES = 16  # that a range which killed is cut into: 4 deaths find one row of 4,096
DEATHS = 3  # in one step, then it is given up: once may have been anything

_RANGE = re.compile(r"(\d+)-(\d+)")
Range = tuple[int, int]  # ordinals of a shard's rows, half open


@dataclasses.dataclass(frozen=True, slots=True)
class Struck:
    """What earlier processes left behind for one shard."""

    notes: Counter[str]  # step -> processes that died in it (or are still in it)

    def __bool__(self) -> bool:
        return bool(self.notes)

    @property
    def unreadable(self) -> bool:
        """Whether so many processes died while reading the shard that nobody should try again."""
        return self.notes[READING] >= DEATHS

    def pieces(self, rows: int) -> tuple[list[Range], list[int]]:
        """How to run a shard of so many rows: ranges, the suspected ones first, and the rows (ordinals) that are given up."""
        deaths = {range_: count for step, count in self.notes.items() if (range_ := _range(step))}
        suspected: list[Range] = []
        others: list[Range] = []
        given_up: list[int] = []

        def cut(whole: Range, under_suspicion: bool) -> None:
            size = whole[1] - whole[0]
            for number in range(min(PIECES, size)):
                piece = (
                    whole[0] + size * number // min(PIECES, size),
                    whole[0] + size * (number + 1) // min(PIECES, size),
                )
                died = deaths.get(piece, 0)
                if piece[1] - piece[0] > 1 and died:
                    cut(piece, True)
                elif died >= DEATHS:
                    given_up.append(piece[0])
                else:
                    (suspected if under_suspicion or died else others).append(piece)

        cut((0, rows), False)
        return suspected + others, given_up


class Strikes:
    """One process's notes in one job's folder."""

    def __init__(self, folder: Folder, who: str = "", living: Callable[[], set[str]] = set) -> None:
        """`who`: this process's name, without dots, "" for a random one; `living` tells which processes live."""
        self._folder, self._living = folder, living
        self._who = who or secrets.token_hex(8)
        self._standing: set[str] = set()  # our notes, of all threads
        self._leaving = threading.Lock()
        self._ended = False

    def left_by_others(self, shard: int, generation: int) -> Struck:
        """What is there that is not ours: of the dead, or of others who are at it at this moment."""
        return Struck(Counter(step for step, who in self._notes(_place(shard, generation)) if who != self._who))

    def deaths_while_loading(self, recipe: str) -> int:
        """How many processes died while they loaded the model. Unlike a shard, many may load the same one: the living are left out."""
        notes = self._notes(_loading(recipe))
        living = self._living() if notes else set()
        if self._who not in living:
            return 0  # a broker that does not know us has forgotten everybody: that says nothing of the others
        return sum(who not in living for _, who in notes)

    @contextlib.contextmanager
    def loading(self, recipe: str) -> Generator[None]:
        """A note for as long as the block runs."""
        with self._noted(f"{_loading(recipe)}/loading"):
            yield

    @contextlib.contextmanager
    def noted(self, shard: int, generation: int, step: str) -> Generator[None]:
        """A note for as long as the block runs."""
        with self._noted(f"{_place(shard, generation)}/{step}"):
            yield

    def note(self, shard: int, generation: int, step: str) -> None:
        """Before the step."""
        self._leave(f"{_place(shard, generation)}/{step}")

    def erase(self, shard: int, generation: int, step: str) -> None:
        """After it."""
        self._delete(f"{_place(shard, generation)}/{step}.{self._who}")

    def erase_all(self) -> None:
        """The process ends in good order, whatever it was doing; threads that are still at it leave no note any more."""
        with self._leaving:
            self._ended = True
            for name in list(self._standing):
                self._delete(name)

    def clear(self, shard: int, generation: int) -> None:
        """The shard has its marker: nobody needs to know any more."""
        self._delete(_place(shard, generation))

    def forgive_loading(self, recipe: str) -> None:
        """Whatever killed them was mended."""
        self._delete(_loading(recipe))

    @contextlib.contextmanager
    def _noted(self, name: str) -> Generator[None]:
        self._leave(name)
        try:
            yield
        finally:
            self._delete(f"{name}.{self._who}")

    # A store that takes no notes at the moment is no reason to stop: whether the work counts is decided at its marker.

    def _leave(self, name: str) -> None:
        name = f"{name}.{self._who}"
        with self._leaving:
            if self._ended:
                return
            self._standing.add(name)
            try:
                self._folder.leave(name, b'{"version":1}')
            except StopJob as error:
                tell(log, "note not left", note=name, why=error)

    def _delete(self, name: str) -> None:
        for one in list(self._standing):
            if one == name or one.startswith(f"{name}/"):
                self._standing.discard(one)
        try:
            self._folder.delete(name)
        except (StopJob, OSError) as error:
            tell(log, "note not erased", note=name, why=error)

    def _notes(self, place: str) -> list[tuple[str, str]]:
        """(step, who) of each note."""
        found = (name.rpartition(".") for name in self._folder.names(place))
        return [(step, who) for step, _, who in found]


def step_of(piece: Range) -> str:
    """The name of the step that runs these rows."""
    return f"{piece[0]}-{piece[1]}"


def _range(step: str) -> Range | None:
    match = _RANGE.fullmatch(step)
    return (int(match[1]), int(match[2])) if match else None


def _place(shard: int, generation: int) -> str:
    return f"strikes/{shard}.{generation}"


def _loading(recipe: str) -> str:
    return f"strikes/loading-{recipe}"
