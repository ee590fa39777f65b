"""What a test may let happen inside a worker's process: rows that kill or hang it, a model that kills it while it is loaded.

Installed in the forked child, over the adapter's methods, so that the product knows nothing of it.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import numpy as np
import pyarrow as pa

ITEM = b"."  # one for each item that goes to the device


def install(hooks: dict[str, Any]) -> None:
    """`kills`, `hangs`: texts with this word do so (hanging, if there is a file `hung`, only the process that is first to make it, with its pid);
    `dies_loading`: loading kills while this file exists; `poisons`: a file, and the process that makes it loses its device; `ran`: a file that gets one byte for each item run."""
    if "dies_loading" in hooks:
        _die_while_loading(hooks["dies_loading"])
    if "poisons" in hooks:
        _lose_device(hooks["poisons"])
    _watch_rows(hooks)


def _lose_device(mark: str) -> None:
    """From its first batch on, of the process that is first, every call fails, as after an assertion of a kernel."""
    from lading.adapters.encode import Encoder

    run, lost = Encoder._run, []

    def poisoned(*given: Any, **named: Any) -> Any:
        if lost or (threading.current_thread().name.startswith("lading-device") and _first(mark)):
            lost.append(True)
            raise RuntimeError("CUDA error: device-side assert triggered")
        return run(*given, **named)

    Encoder._run = poisoned


def _die_while_loading(while_there: str) -> None:
    from lading.adapters.model import Model

    load = Model.load

    def dying(*given: Any, **named: Any) -> Any:
        if os.path.exists(while_there):
            os.kill(os.getpid(), signal.SIGKILL)
        return load(*given, **named)

    Model.load = dying


def _watch_rows(hooks: dict[str, Any]) -> None:
    from lading.adapters.encode import Encoder

    prepare, run = Encoder.prepare, Encoder.run
    marked: dict[int, tuple[Any, dict[int, str]]] = {}  # by id of what was prepared: itself, and what its items do

    def preparing(self: Any, columns: list[pa.Array]) -> Any:
        prepared = prepare(self, columns)
        texts = columns[0].to_pylist()
        acts = {
            item: act
            for act in ("kills", "hangs")
            if act in hooks
            for item, row in enumerate(prepared.rows.tolist())
            if hooks[act] in (texts[row] or "")
        }
        if acts:
            marked[id(prepared)] = prepared, acts
        return prepared

    def running(self: Any, parts: list[tuple[Any, np.ndarray]]) -> Any:
        if "ran" in hooks:
            with open(hooks["ran"], "ab", buffering=0) as file:
                file.write(ITEM * sum(len(items) for _, items in parts))
        for prepared, items in parts:
            acts = marked.get(id(prepared), (None, {}))[1]
            for act in {acts[item] for item in items.tolist() if item in acts}:
                if act == "kills":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif "hung" not in hooks or _first(hooks["hung"]):
                    threading.Event().wait()
        return run(self, parts)

    Encoder.prepare, Encoder.run = preparing, running


def _first(file: str) -> bool:
    try:
        with open(file, "x") as made:
            made.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True
