"""What a job is: spec, sources, manifest, sinks; and the client of applications. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import AsyncClient as AsyncClient
    from .client import Client as Client


def __getattr__(name: str) -> Any:
    # Not imported before it is asked for: the command line starts without the broker's packages.
    if name in ("AsyncClient", "Client"):
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
