"""The way from an fsspec URL to the store behind it, and what to install or to write where there is none."""

from __future__ import annotations

import difflib
from typing import Any

from ..config.errors import UsageError


def open_store(url: str, refusal: type[UsageError], **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Raises `refusal`: unknown scheme, package not installed."""
    from fsspec.core import url_to_fs  # `lading status` on a local path does without
    from fsspec.registry import known_implementations

    try:
        return url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0].rpartition("::")[2]
        if scheme not in known_implementations:
            (near,) = difflib.get_close_matches(
                scheme, known_implementations, n=1, cutoff=0.0
            )  # to list 50 helps nobody
            raise refusal(f"{url}: unknown scheme {scheme!r}; did you mean {near!r}?") from error
        if isinstance(error, ImportError):
            package = str(known_implementations[scheme]["class"]).partition(".")[0]
            if package == "fsspec":  # its own implementation, which needs another package
                package = getattr(error.__cause__, "name", None) or package
            raise refusal(f"{url}: {error} (pip install {package})") from error
        raise refusal(f"{url}: {error}") from error
