"""The two things that a recipe is settled from: what a user asks for, and the checkpoint, opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .catalogue import Entry
from .hub import Checkpoint
from .modules import Module


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The keys of a job's step and policy that decide numbers, with the same names and meanings; the defaults ask for what its own files say."""

    max_tokens: int = 0
    precision: str = "float32"
    long_text: str = "truncate"
    truncation_side: str = ""
    chunk_tokens: int = 0
    chunk_overlap: int = 0
    dims: int = 0
    vector_type: str = "float32"
    prompt: str = "document"
    prompt_text: str = ""
    instruction: str = ""
    activation: str = ""
    pooling: str = ""  # "" and None: what the checkpoint says
    normalize: bool | None = None
    known_as: str = ""  # its name in the catalogue
    outputs: tuple[str, ...] = ()
    top_k: int = 0
    threshold: float = 0.0
    token_pooling: int = 1
    template: str = ""  # how a language model is asked for a score
    adapter: str = ""


WISHES = tuple(field.name for field in dataclasses.fields(Wishes))


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint whose files were found safe, and the two that say what kind of model it is."""

    checkpoint: Checkpoint
    config: dict[str, Any]  # config.json
    modules: list[Module]  # modules.json, or what stands for it
    known: Entry | None = None  # what the catalogue has of it
    transformer: dict[str, Any] = dataclasses.field(default_factory=dict)  # sentence_bert_config.json
    positions: int | None = None  # tokens that the model has positions for; None: any number
    origins: dict[str, str] = dataclasses.field(default_factory=dict)  # recipe field -> where its value came from

    def note(self, field: str, origin: str) -> None:
        """Remember where a recipe's field has its value from: a file of the checkpoint, or one of config/origins.py."""
        self.origins[field] = origin

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def part(self) -> str:
        """Sub-folder with the model's files; "" where they lie in the checkpoint's own."""
        return self.modules[0].path

    @property
    def is_pipeline(self) -> bool:
        """Whether modules.json says what comes after the transformer."""
        return len(self.modules) > 1 and (self.folder / "modules.json").exists()

    @property
    def architecture(self) -> str:
        """The class that config.json names, "" if it names none."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""
