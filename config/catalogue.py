"""The models that people use: facts of their cards and configurations, and how far each was tested. No code of any model.

The packaged models_*.yaml, then models.yaml in LADING_CONFIG_DIR, key by key. A checkpoint's own files come first: the
catalogue says what they leave open, and where both speak of a size, they must agree. docs/catalogue.md explains it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import ModelError, UsageError, nearest
from .natives import WITHOUT_CODE
from .settings import own_file
from .strict_yaml import load_mapping, parse_mapping

if TYPE_CHECKING:
    from .hub import Checkpoint

FILE = "models.yaml"
SOURCES = ("card", "config", "mteb", "st-docs", "notes", "own")
TASKS = ("encode", "score", "extract", "classify", "generate")
OUTPUTS = ("dense", "sparse", "multi_vector", "score", "entities", "relations", "labels", "text")
POOLINGS = ("cls", "last", "max", "mean", "mean_sqrt_len", "weighted_mean")
GRADES = ("verified", "architecture verified", "facts only")

# Compared with the reference library on the weights themselves.
VERIFIED = frozenset({"sentence-transformers/all-minilm-l6-v2"})
# Compared on random weights: what the model gives -> the architectures (`model_type`). A test holds this to the tests that
# do the comparing, so that no grade is given here alone.
TESTED: dict[str, frozenset[str]] = {
    "dense": frozenset(
        {
            "albert",
            "bert",
            "camembert",
            "data2vec-text",
            "deberta-v2",
            "distilbert",
            "electra",
            "ernie",
            "eurobert",
            "gemma",
            "gemma2",
            "gemma3_text",
            "gpt2",
            "granite",
            "gte",
            "jina_embeddings_v3",
            "llama",
            "mistral",
            "modernbert",
            "mpnet",
            "mt5",
            "new",
            "nomic_bert",
            "olmo2",
            "phi3",
            "qwen2",
            "qwen3",
            "roberta",
            "roberta-prelayernorm",
            "smollm3",
            "static",
            "t5",
            "umt5",
            "xlm-roberta",
            "xlm-roberta-xl",
        }
    ),
    "sparse": frozenset(
        {
            "bert",
            "distilbert",
            "modernbert",
            "roberta",
            "xlm-roberta",
        }
    ),
    "multi_vector": frozenset(
        {
            "bert",
            "modernbert",
            "roberta",
            "xlm-roberta",
        }
    ),
    "score": frozenset(
        {
            "bert",
            "camembert",
            "deberta-v2",
            "distilbert",
            "electra",
            "gemma",
            "gte",
            "modernbert",
            "mpnet",
            "new",
            "qwen2",
            "qwen3",
            "roberta",
            "xlm-roberta",
        }
    ),
    "entities": frozenset({"bert", "distilbert", "electra", "roberta", "xlm-roberta"}),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of one model. A fact that is not known holds its default."""

    name: str  # on the hub
    task: str
    outputs: tuple[str, ...]
    architecture: str  # `model_type` of its config.json; static: no transformer
    licence: str  # as the hub writes it; "unstated" where its card has none
    source: str  # of the facts: one of SOURCES
    sources: dict[str, str] = dataclasses.field(default_factory=dict)  # fact -> its source, where that is another
    pooling: str = ""  # in the recipe's words
    normalize: bool | None = None
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)  # by name; {instruction} stands for `instruction`
    instruction: str = ""  # the task that the prompt, or the template, tells of when nobody names another
    max_tokens: int = 0  # recommended
    dims: int = 0
    matryoshka: tuple[int, ...] = ()  # shorter lengths that it was trained for
    parameters: int = 0
    activation: str = ""  # of a reranker: identity | sigmoid
    input: str = ""  # of a reranker: pair | prompt | chat | list
    template: str = ""  # how query and document, or a label, are put in words
    rule: str = ""  # how the score comes from the logits, where that is more than an activation
    remote_code: bool = (
        False  # its repository on the hub names code of its own, which is never run (natives.py: what needs none)
    )
    runs: bool = True  # false: no adapter of this release runs such a model
    notes: str = ""
    where: dict[str, str] = dataclasses.field(default_factory=dict)  # fact -> the catalogue's file that says it

    @property
    def grade(self) -> str:
        """One of GRADES: what the tests of this release show, never more."""
        if self.name.lower() in VERIFIED and not set(self.where.values()) - set(_PACKAGED):
            return "verified"
        if not self.runs or (self.remote_code and self.architecture not in WITHOUT_CODE):
            return "facts only"
        return grade_of(self.architecture, self.outputs)

    @property
    def texts(self) -> dict[str, str]:
        """Its prompts, with the instruction in its place."""
        return {name: text.replace("{instruction}", self.instruction) for name, text in self.prompts.items()}

    def origin(self, fact: str) -> str:
        """Where a value that came from here came from, in words."""
        return f"catalogue ({self.where.get(fact, FILE)}: {self.sources.get(fact, self.source)})"

    def check(self, fact: str, found: int, path: object) -> None:
        """Raises ModelError unless the checkpoint, in its file `path`, has the length of vectors that the catalogue has."""
        said = getattr(self, fact)
        if said and said != found:
            self.disagree(fact, f"{path} says {found}")

    def disagree(self, fact: str, found: str) -> NoReturn:
        """Raises ModelError with both values and both sources, and what to do."""
        raise ModelError(
            f"{self.name}: {fact}: {self.origin(fact)} says {getattr(self, fact)}, but {found}. If the checkpoint is right, say so in "
            f"{FILE} of LADING_CONFIG_DIR; if it is another model, name another one with --as, or none"
        )

    def to_dict(self) -> dict[str, Any]:
        """The facts that are known, and the grade."""
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "where"}
        return {name: value for name, value in known.items() if value not in ("", 0, (), {}, None)} | {
            "runs": self.runs,
            "remote_code": self.remote_code,
            "grade": self.grade,
        }


Catalogue = dict[str, Entry]  # by name in small letters
_FIELDS = {field.name: field for field in dataclasses.fields(Entry) if field.name not in ("name", "where")}
_NEEDED = tuple(name for name in _FIELDS if name in ("task", "outputs", "architecture", "licence", "source"))
_CHOICES: dict[str, tuple[str, ...]] = {
    "task": TASKS,
    "outputs": OUTPUTS,
    "source": SOURCES,
    "pooling": POOLINGS,
    "activation": ("identity", "sigmoid"),
    "input": ("pair", "prompt", "chat", "list"),
}
_PACKAGED = ("models_dense.yaml", "models_sparse.yaml", "models_score.yaml", "models_extract.yaml")


def grade_of(architecture: str, outputs: Iterable[str]) -> str:
    """How far a model with this architecture and these outputs was tested, whether it has an entry or not."""
    tested = all(architecture in TESTED.get(output, ()) for output in outputs)
    return "architecture verified" if tested else "facts only"


def load(environ: Mapping[str, str] = os.environ) -> Catalogue:
    """Every entry. Raises UsageError naming the file, the model, the key and the nearest valid spelling."""
    own = own_file(FILE, environ)
    if own is None:
        return _packaged()
    found = dict(_packaged())
    for name, keys in load_mapping(own, UsageError).items():
        entry = _entry(name, keys, str(own), found)
        found[entry.name.lower()] = entry
    return found


def find(name: str, environ: Mapping[str, str] = os.environ) -> Entry | None:
    """The entry of that hub name, whichever letters are capitals; None if there is none."""
    return load(environ).get(name.lower())


def of(checkpoint: Checkpoint, known_as: str = "") -> Entry | None:
    """What is known of a checkpoint: by its name on the hub, or by the one that the user says it has.

    A folder has no name, whatever is written in it: its recipe never depends on the catalogue unless asked to.
    Raises ModelError for a `known_as` that is not in the catalogue.
    """
    if not known_as:
        return None if checkpoint.origin == "folder" else find(checkpoint.name)
    found = find(known_as)
    if found is None:
        raise ModelError(f"the catalogue has no model {known_as!r}{near(known_as)} (lading models)")
    return found


def near(name: str) -> str:
    """`"; did you mean 'x'?"` for the entry that is called so by another owner or in other letters, else nearly so; "" for none."""
    entries, last = load(), name.rpartition("/")[2].lower()
    same = [one.name for key, one in entries.items() if key.rpartition("/")[2] == last and one.name != name]
    hint = nearest(name, same or [one.name for one in entries.values() if one.name != name])
    return f"; did you mean {same[0]!r}?" if same else hint if "did you mean" in hint else ""


@functools.cache
def _packaged() -> Catalogue:
    found: Catalogue = {}
    for file in _PACKAGED:
        text = importlib.resources.files("lading.config").joinpath(file).read_text(encoding="utf-8")
        for name, keys in parse_mapping(text, file, UsageError).items():
            entry = _entry(name, keys, file, {})
            if entry.name.lower() in found:
                raise UsageError(f"{file}: {name} is in the catalogue twice")
            found[entry.name.lower()] = entry
    return found


def _entry(name: object, keys: object, file: str, below: Catalogue) -> Entry:
    """A checked entry, over the one of the same name in `below`."""

    def fail(key: str, what: str) -> NoReturn:
        raise UsageError(f"{file}: {f'{name}.{key}' if key else name}: {what}")

    if not isinstance(name, str) or name.count("/") != 1 or not name.replace("/", "").isprintable():
        fail("", "expected a name on the hub, like owner/model")
    if not isinstance(keys, dict):
        fail("", f"expected the keys of a model, found {keys!r}")
    base = below.get(name.lower())
    given: dict[str, Any] = {} if base is None else {field: getattr(base, field) for field in _FIELDS}
    where = {} if base is None else dict(base.where)
    for key, value in keys.items():
        if key not in _FIELDS:
            fail(str(key), f"unknown key{nearest(str(key), _FIELDS)}")
        given[key] = _checked(key, value, fail)
        where[key] = file
    if base is not None and "source" not in keys:  # what is said here is not what the other source said
        given["sources"] = {**given["sources"], **{key: "own" for key in keys if key not in ("sources", "notes")}}
    for key in _NEEDED:
        if key not in given and not (key == "source" and file not in _PACKAGED):
            fail(key, "is missing")
    given.setdefault("source", "own")
    return Entry(name=name, where=where, **given)


def _checked(key: str, value: Any, fail: Any) -> Any:
    kind = str(_FIELDS[key].type)
    if kind.startswith("bool"):
        if not isinstance(value, bool):
            fail(key, f"expected true or false, found {value!r}")
    elif kind == "int":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            fail(key, f"expected a whole number from 1, found {value!r}")
    elif kind.startswith("tuple"):
        wanted = int if "int" in kind else str
        if not isinstance(value, list) or not value or not all(type(one) is wanted for one in value):
            fail(key, f"expected a list of {'whole numbers' if wanted is int else 'words'}, found {value!r}")
        value = tuple(value)
    elif kind.startswith("dict"):
        texts = isinstance(value, dict) and all(isinstance(one, str) for pair in value.items() for one in pair)
        if not isinstance(value, dict) or not texts:
            fail(key, f"expected names with texts, found {value!r}")
        for fact, source in value.items() if key == "sources" else ():
            if fact not in _FIELDS:
                fail(f"sources.{fact}", f"unknown key{nearest(str(fact), _FIELDS)}")
            if source not in SOURCES:
                fail(f"sources.{fact}", f"{source!r} is no source{nearest(str(source), SOURCES)}")
    elif not isinstance(value, str) or not value:
        fail(key, f"expected text, found {value!r}")
    for one in value if isinstance(value, tuple) else (value,):
        if key in _CHOICES and one not in _CHOICES[key]:
            fail(key, f"{one!r} is none{nearest(str(one), _CHOICES[key])}")
    return value
