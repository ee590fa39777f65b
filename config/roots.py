"""Which places a message from the queue may name: those under the roots that this worker allows. Pure but for symbolic links."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

from .errors import UsageError


def parse(text: str) -> tuple[str, ...]:
    """The roots of the setting `roots`: paths and URLs, separated by commas; empty is the working directory."""
    named = [one.strip() for one in text.split(",") if one.strip()]
    return tuple(_whole(one) for one in named or [os.getcwd()])


def check_under(place: str, roots: Sequence[str], what: str) -> None:
    """Raises UsageError unless `place` (a local path, or an fsspec URL) is one of `roots` or lies below one."""
    whole = _whole(place)
    for root in roots:
        if whole == root or whole.startswith(root.rstrip("/") + "/"):
            return
    raise UsageError(
        f"{what} {place} lies under none of the places that this worker allows ({', '.join(roots)}): start it with LADING_ROOTS"
    )


def _whole(place: str) -> str:
    """Without `..`, and without links on a local disk, so that neither leads out of a root."""
    scheme, separator, rest = place.partition("://")
    if separator:
        return f"{scheme}://{posixpath.normpath(rest)}"
    return os.path.realpath(os.path.expanduser(place))
