"""Which failures to load a model may pass by themselves: a full disk, a network that is away. Pure."""

from __future__ import annotations

import errno

# Of the machine and the network, not of the files that were asked for.
_PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH", "EIO", "EMFILE",
        "ENETDOWN", "ENETUNREACH", "ENFILE", "ENOLCK", "ENOMEM", "ENOSPC", "ESTALE", "ETIMEDOUT",
    )
}  # fmt: skip


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed later though nobody changes a file; what stands behind an error (`raise ... from`) counts too."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionError | TimeoutError) or (isinstance(seen, OSError) and seen.errno in _PASSING):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
