"""What `encode` needs and a checkpoint's files may leave unsaid: pooling, normalisation, prompts. The catalogue fills the gaps.

The order is that of config/origins.py, and each decision notes there where it came from.
"""

from __future__ import annotations

from .errors import ModelError, nearest
from .hub import SENTENCE_TRANSFORMERS, prompt_named
from .origins import DEFAULT, OPTION
from .wishes import Opened, Wishes


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
    elif opened.architecture.endswith("ForCausalLM"):
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
    """The checkpoint's own prompts, where it has any, are all there are; else those of the catalogue."""
    if wish.prompt_text or wish.prompt == "none":
        opened.note("prompt", OPTION)
        return wish.prompt_text
    known = opened.known
    if known is None or not known.prompts or opened.checkpoint.prompts:
        text = prompt_named(opened.folder, wish.prompt)
        opened.note("prompt", SENTENCE_TRANSFORMERS if opened.checkpoint.prompts else DEFAULT)
        return text
    if wish.prompt not in known.prompts and wish.prompt not in ("document", "query"):
        hint = nearest(wish.prompt, {*known.prompts, "document", "query", "none"})
        raise ModelError(
            f"{known.name}: {known.origin('prompts')} has no prompt {wish.prompt!r}{hint} (or give a text: prompt_text)"
        )
    opened.note("prompt", known.origin("prompts"))
    return known.texts.get(wish.prompt, "")


def check_dims(opened: Opened, own_dims: int) -> None:
    """Raises ModelError where the catalogue has another length; its `dims` are those of the first output that it names."""
    if opened.known is not None and opened.known.outputs[0] == "dense":
        opened.known.check("dims", own_dims, opened.folder)
