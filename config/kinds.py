"""Which verb a model is for, by what the catalogue says, its modules, and the head that its config.json names."""

from __future__ import annotations

from .catalogue import Entry
from .content import read_json
from .errors import ModelError
from .hub import SENTENCE_TRANSFORMERS, Checkpoint
from .modules import line_of, read_modules
from .wishes import Opened

LANGUAGE_MODEL = "ForCausalLM"
# What the verbs ask for; `score` takes a language model too.
HEADS = {"score": "ForSequenceClassification", "extract": "ForTokenClassification"}


def verb_of(architecture: str) -> str:
    """The verb that a class with a head is for, "" for one without."""
    return next((verb for verb, head in HEADS.items() if architecture.endswith(head)), "")


def verb_for(checkpoint: Checkpoint, entry: Entry | None) -> str:
    """The verb that a checkpoint is for, with its entry in the catalogue; `encode` where nothing says another."""
    if entry is not None and entry.task in (*HEADS, "encode"):
        return entry.task
    modules = read_modules(checkpoint.folder)
    if line_of(modules) == "score":
        return "score"
    return verb_of(Opened(checkpoint, read_json(checkpoint.folder / "config.json"), modules).architecture) or "encode"


def check_head(opened: Opened, verb: str) -> None:
    """Raises ModelError unless the model has the head of `verb`, and nothing that the verb does not apply."""
    folder, verb_found = opened.folder, verb_of(opened.architecture)
    if verb_found != verb:
        if not verb_found and (opened.is_pipeline or opened.architecture.endswith("Model")):
            verb_found = "encode"
        known = f"; it is a model for `{verb_found}`" if verb_found else ""
        named = opened.architecture or "of no stated architecture"
        raise ModelError(f"{folder / 'config.json'}: `{verb}` needs a *{HEADS[verb]}, and this is {named}{known}")
    if opened.is_pipeline:
        kinds = ", ".join(module.kind for module in opened.modules)
        raise ModelError(f"{folder / 'modules.json'}: lists {kinds}: a model for `encode`")
    if verb != "score" and read_json(folder / SENTENCE_TRANSFORMERS).get("default_prompt_name"):
        raise ModelError(f"{folder / SENTENCE_TRANSFORMERS}: has a default prompt, which `{verb}` does not apply")
