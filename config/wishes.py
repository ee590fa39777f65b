"""What a user may ask of a checkpoint, one field a wish; the defaults ask for what its own files say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .hub import Checkpoint
from .modules import Module


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The keys of a job's step and policy that decide numbers, with the same names and meanings."""

    max_tokens: int = 0
    precision: str = "float32"
    long_text: str = "truncate"
    chunk_tokens: int = 0
    chunk_overlap: int = 0
    dims: int = 0
    vector_type: str = "float32"
    prompt: str = "document"
    prompt_text: str = ""
    activation: str = ""
    adapter: str = ""


WISHES = tuple(field.name for field in dataclasses.fields(Wishes))


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint whose files were found safe, and the two that say what kind of model it is."""

    checkpoint: Checkpoint
    config: dict[str, Any]  # config.json
    modules: list[Module]  # modules.json, or what stands for it

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def is_pipeline(self) -> bool:
        """Whether modules.json says what comes after the transformer."""
        return len(self.modules) > 1 and (self.folder / "modules.json").exists()

    @property
    def architecture(self) -> str:
        """The class that config.json names, "" if it names none."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""
