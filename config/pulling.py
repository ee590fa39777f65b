"""Models brought into the hub's cache before anybody waits for them, weights too, and checked as far as their files tell.

Every file is fetched once, however many processes ask for it at the same time: huggingface_hub holds a lock for each.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from .content import check_safe
from .errors import HubAway, ModelError
from .hub import Checkpoint, locate
from .lora import read_settings
from .modules import TABLES, is_routed, read_modules
from .repository import lacking, stored_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """A model, or a LoRA adapter, by the name of its folder or on the hub."""

    name: str  # may end in @revision
    revision: str = ""
    kind: str = "model"  # model | adapter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What became of one."""

    model: str  # the name that was given
    kind: str  # model | adapter
    state: str  # fetched | there already | refused | unfinished: the same call may fetch it later
    folder: str | None = None  # where its files lie
    revision: str | None = None  # of the hub: the commit; None for a folder
    bytes: int | None = None  # of the files that it is made of
    reason: str = ""  # why it is not there

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def pull(one: Wanted) -> Pulled:
    """Find it, on the hub if nowhere else (unless the setting `offline` is on), and look whether it can be used. Loads nothing."""
    try:
        found = locate(one.name, one.revision)
        _check(found, one.kind)
        state = "fetched" if found.origin == "hub" else "there already"
        return Pulled(
            model=one.name,
            kind=one.kind,
            state=state,
            folder=str(found.folder),
            revision=found.revision or None,
            bytes=stored_bytes(found.folder),
        )
    except ModelError as error:
        state = "unfinished" if isinstance(error, HubAway) else "refused"
        return Pulled(model=one.name, kind=one.kind, state=state, reason=str(error))


def _check(found: Checkpoint, kind: str) -> None:
    """Raises ModelError unless its files are safe to open and all there."""
    if kind == "adapter":
        read_settings(found.folder)
        return
    for side in ("document", "query") if is_routed(found.folder) else ("document",):
        first = read_modules(found.folder, side)[0]
        check_safe(found.folder / first.path, table=first.kind in TABLES)
    if missing := lacking(found.folder):
        raise ModelError(f"{found.folder}: {', '.join(missing)} is not there: get the whole folder again")
