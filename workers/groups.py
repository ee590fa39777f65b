"""Requests of one recipe that were pulled together: their inputs are prepared, run and answered as one."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from ..config.recipe import Recipe
from ..pipelines import wire
from ..schedulers.messages import Request
from ..schedulers.queues import Lease
from .packer import Packing
from .parts import Items


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A request off the queue."""

    lease: Lease
    id: str  # its result's
    request: Request
    sent: float = 0.0  # Unix time, where the message says it


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A request in a group, and which of the group's rows are its own."""

    asked: Asked
    first: int
    count: int


@dataclasses.dataclass(slots=True, kw_only=True)
class Group(Items):
    """See the module. All of its members go into tables, or none."""

    recipe: Recipe
    model: dict[str, Any]  # what a table's metadata says of the checkpoint
    members: list[Member]
    packing: Packing  # what of it still waits
    into: bool = False

    @property
    def counted(self) -> bool:
        """Whether the members want tokens and truncated: all of them, or none, since they have the same options."""
        return self.members[0].asked.request.options.token_columns


def bounds(group: Group) -> np.ndarray:
    """int64 (members + 1,): the first row of each member, then the end."""
    last = group.members[-1]
    return np.array([*(member.first for member in group.members), last.first + last.count])


def errors_of(group: Group) -> list[list[wire.ItemError]]:
    """For each member its inputs that have no result, and why."""
    errors: list[list[wire.ItemError]] = [[] for _ in group.members]
    failed = dict(group.prepared.bad)
    failed.update({int(group.prepared.rows[item]): why for item, why in group.failed.items()})
    starts = bounds(group)[:-1]
    for row, (code, detail) in sorted(failed.items()):
        number = int(np.searchsorted(starts, row, side="right")) - 1
        errors[number].append((row - group.members[number].first, code, detail))
    return errors


def answers(group: Group) -> list[bytes]:
    """The result of each member of a complete group, in their order."""
    members = group.members
    cuts_at = bounds(group)
    pieces: list[list[wire.Piece]] = [[] for _ in members]
    for items, batch in group.done:
        columns = wire.columns(group.recipe, batch)
        if group.counted:
            prepared = group.prepared
            columns = dataclasses.replace(columns, tokens=prepared.costs[items], truncated=prepared.cut[items])
        rows = group.prepared.rows[items]
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        cuts = np.searchsorted(rows, cuts_at).tolist()
        for number, (low, high) in enumerate(itertools.pairwise(cuts)):
            if low < high:
                pieces[number].append(wire.Piece(columns, rows[low:high] - members[number].first, order[low:high]))
    return [
        wire.answer(group.recipe.hash, member.count, pieces[number], errors)
        for number, (member, errors) in enumerate(zip(members, errors_of(group), strict=True))
    ]
