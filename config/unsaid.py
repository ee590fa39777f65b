"""What `encode` needs and a checkpoint's files may leave unsaid: pooling, normalisation, prompts. The catalogue fills the gaps.

The order is that of config/origins.py, and each decision notes there where it came from.
"""

from __future__ import annotations

import re

from .errors import ModelError, nearest
from .hub import SENTENCE_TRANSFORMERS, prompt_named
from .kinds import LANGUAGE_MODEL
from .origins import DEFAULT, OPTION
from .wishes import Opened, Wishes

_SLOT = re.compile(r"\{(?:instruction|task)\}")
# How instruct embedders write a query's prompt, with a default in the instruction's place: (before, after).
_FORMS = (
    re.compile(r"(Instruct: ).*(\nQuery: ?)", re.DOTALL),  # E5, Qwen3 Embedding and many after them
    re.compile(r"(task: ).*( \| query: ?)", re.DOTALL),  # EmbeddingGemma
)


def pooling_of(opened: Opened, wish: Wishes, saved: str) -> str:
    """What is asked for, else the Pooling module's (`saved`), else the catalogue's, else the mean, as sentence-transformers does.

    That library gives a plain causal model its last token. Whether its tokenizer closes texts is not known then, and neither
    whether the model was made for it: here somebody has to say so.
    """
    module = next((one.path for one in opened.modules if one.kind == "Pooling" and one.path), "")
    known = opened.known
    if wish.pooling:
        pooling, origin = wish.pooling, OPTION
    elif module:
        pooling, origin = saved, f"{module}/config.json"
    elif known is not None and known.pooling:
        pooling, origin = known.pooling, known.origin("pooling")
    elif opened.architecture.endswith(LANGUAGE_MODEL):
        raise ModelError(
            f"{opened.folder}: no file says how the token vectors of {opened.architecture} become one: give --pooling mean, cls or last"
        )
    else:
        pooling, origin = saved, DEFAULT
    opened.note("pooling", origin)
    return pooling


def normalize_of(opened: Opened, wish: Wishes) -> bool:
    """What is asked for, else whether modules.json lists a Normalize, else the catalogue's, else no."""
    known = opened.known
    if wish.normalize is not None:
        normalize, origin = wish.normalize, OPTION
    elif (opened.folder / "modules.json").exists():
        normalize, origin = any(module.kind == "Normalize" for module in opened.modules), "modules.json"
    elif known is not None and known.normalize is not None:
        normalize, origin = known.normalize, known.origin("normalize")
    else:
        normalize, origin = False, DEFAULT
    opened.note("normalize", origin)
    return normalize


def prompt_of(opened: Opened, wish: Wishes) -> str:
    """The checkpoint's own prompts, where it has any, are all there are; else those of the catalogue. With the instruction in its place."""
    if wish.prompt_text or wish.prompt == "none":
        opened.note("prompt", OPTION)
        return instructed(wish.prompt_text, wish.instruction, opened.checkpoint.name)
    known = opened.known
    if known is None or not known.prompts or opened.checkpoint.prompts:
        text = prompt_named(opened.folder, wish.prompt)
        said = SENTENCE_TRANSFORMERS if opened.checkpoint.prompts else DEFAULT
        opened.note("prompt", OPTION if wish.instruction else said)
        return instructed(text, wish.instruction, opened.checkpoint.name)
    if wish.prompt not in known.prompts and wish.prompt not in ("document", "query"):
        hint = nearest(wish.prompt, {*known.prompts, "document", "query", "none"})
        raise ModelError(
            f"{known.name}: {known.origin('prompts')} has no prompt {wish.prompt!r}{hint} (or give a text: prompt_text)"
        )
    opened.note("prompt", OPTION if wish.instruction else known.origin("prompts"))
    text = known.prompts.get(wish.prompt, "")
    return instructed(text, wish.instruction, known.name) if wish.instruction else known.texts.get(wish.prompt, "")


def instructed(prompt: str, instruction: str, model: str) -> str:
    """The prompt with the instruction in its place: a slot, or what stands there in one of the usual forms. Raises ModelError."""
    if _SLOT.search(prompt):
        if not instruction:
            raise ModelError(f"{model}: the prompt {prompt!r} has a slot and needs an instruction")
        return _SLOT.sub(lambda _: instruction, prompt)
    if not instruction:
        return prompt
    for form in _FORMS:
        if found := form.fullmatch(prompt):
            return found[1] + instruction + found[2]
    raise ModelError(
        f"{model}: the prompt {prompt!r} has no place for an instruction; choose another one (query, say), or give a "
        "prompt_text with {instruction} in it"
    )


def check_dims(opened: Opened, own_dims: int) -> None:
    """Raises ModelError where the catalogue has another length; its `dims` are those of the first output that it names."""
    if opened.known is not None and opened.known.outputs[0] == "dense":
        opened.known.check("dims", own_dims, opened.folder)
