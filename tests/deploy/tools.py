"""The programs that the checks of deploy/ run, and where they come from."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {"promtool": "prometheus", "prometheus": "prometheus"}  # of Debian and Ubuntu


def tool(name: str) -> str:
    """The program's path. Without it a test is skipped on a laptop, and fails in CI."""
    if found := shutil.which(name):
        return found
    missing = f"{name} is not on PATH: apt install {PACKAGES[name]}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
