"""Notes beside the manifest of what a process is about to do with a shard, so that those who come after it dies know.

A note is a file, left before the step and erased after it: what is still there after a process died names the step that
it died in. An orderly end erases them all. They lie beside the manifest because a queue may be flushed. Which rows a struck shard
is to be run in is decided here, purely; running them is not this module's matter.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections import Counter

from .folder import Folder

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

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._who = secrets.token_hex(8)

    def left_by_others(self, shard: int, generation: int) -> Struck:
        """What is there that is not ours."""
        names = self._folder.names(_place(shard, generation))
        steps = (name.rpartition(".") for name in names)
        return Struck(Counter(step for step, _, who in steps if who != self._who))

    def note(self, shard: int, generation: int, step: str) -> None:
        """Before the step. Raises StopJob."""
        self._folder.leave(self._name(shard, generation, step), b'{"version":1}')

    def erase(self, shard: int, generation: int, step: str) -> None:
        """After it."""
        self._folder.delete(self._name(shard, generation, step))

    def clear(self, shard: int, generation: int) -> None:
        """The shard has its marker: nobody needs to know any more."""
        self._folder.delete(_place(shard, generation))

    def _name(self, shard: int, generation: int, step: str) -> str:
        return f"{_place(shard, generation)}/{step}.{self._who}"


def step_of(piece: Range) -> str:
    """The name of the step that runs these rows."""
    return f"{piece[0]}-{piece[1]}"


def _range(step: str) -> Range | None:
    match = _RANGE.fullmatch(step)
    return (int(match[1]), int(match[2])) if match else None


def _place(shard: int, generation: int) -> str:
    return f"strikes/{shard}.{generation}"
