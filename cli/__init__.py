"""The front door. Imports lazily, so that `lading --help` starts fast."""

from .app import main

__all__ = ["main"]
