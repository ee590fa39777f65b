"""How log records look, and that no secret is in one: a line each on standard error, JSON or for a terminal.

Renders what `events.tell` tells and what every other library logs. structlog does the rendering; it is loaded with the first record,
since it takes longer than `lading --help` does.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import quote, unquote

from .errors import LadingError
from .events import Told, shown

LONGEST = 16_000  # characters of a value: of longer ones the middle is left out
SHORTEST = 6  # of a secret that is hidden wherever it stands: shorter ones are in too many words
HIDDEN = "***"
PRINTING = ("huggingface_hub", "transformers")  # libraries that would print by themselves, past all of this

_SECRET_NAME = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|(?:^|_)(?:PASS|KEY|KEY_ID))$")
_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # A badly quoted password may hold any sign: of a broker's URL all before the last @ may belong to it. One slash is left where
        # a URL was taken for a path.
        (r"\b((?:rediss?|amqps?|sentinel):/{1,2})[^\s'\"<>]{0,1000}@", rf"\1{HIDDEN}@"),
        (r"\b([a-z][a-z0-9+.-]{0,30}:/{1,2})[^\s/?#'\"<>@]{0,1000}@", rf"\1{HIDDEN}@"),
        (
            r"([?&][^\s=&]{0,64}(?:pass|user|token|secret|signature|credential|key|sig)[^\s=&]{0,64}=)[^\s&'\"<>]+",
            rf"\1{HIDDEN}",
        ),
        (r"\b(bearer\s+)[\w.~+/=-]{16,}", rf"\1{HIDDEN}"),
        (
            r"((?:password|passwd|secret|secret_?access_?key|session_?token|security-token|api_?key)[\"']?\s*[:=]\s*(?:b?[\"'])?)[^\s\"',;&}]+",
            rf"\1{HIDDEN}",
        ),
        (r"(?-i:hf_(?:(?:oauth|jwt)_[\w.-]{16,}|[A-Za-z0-9]{16,}))", HIDDEN),
        (r"(?-i:(?:AKIA|ASIA)[A-Z0-9]{16})", HIDDEN),
        (r"(authorization[\"']?\s*[:=]\s*(?:b?[\"'])?)[^\r\n\"']+", rf"\1{HIDDEN}"),
    )
]
_bound: dict[str, str] = {}
_hidden: list[re.Pattern[str] | None] = []  # what to hide of this process's settings, once it is known


def setup(level: int, *, others: int = logging.WARNING, form: str = "", file: str = "") -> None:
    """Render this process's records from now on: those of lading from `level`, all others from `others`.

    `form`: auto, console or json; "" is what the settings say when the first record comes. `file`: in place of standard error.
    Calling it again replaces what was set up before.
    """
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Lines)]:
        root.removeHandler(old)
    _hidden.clear()
    _bound.clear()
    root.addHandler(_Lines(form, file))
    root.setLevel(others)
    logging.getLogger("lading").setLevel(level)
    logging.captureWarnings(True)
    for name in PRINTING:
        found = logging.getLogger(name)
        found.handlers.clear()
        found.__class__ = _Passing


def bind(**fields: str) -> None:
    """Put these into every record from now on: of what the process is, never of what it works on."""
    _bound.update(fields)


def redacted(text: str) -> str:
    """The text without passwords, tokens and keys: by their form, and those of this process's environment and settings by their value."""
    if not _hidden:
        _hidden.append(_secrets(os.environ))
    if (known := _hidden[0]) is not None:
        text = known.sub(HIDDEN, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class _Passing(logging.Logger):
    """Leaves its records to the root's handler, whatever its library wants."""

    propagate = property(lambda self: True, lambda self, value: None)  # pyright: ignore

    def addHandler(self, hdlr: logging.Handler) -> None:
        pass


class _Lines(logging.Handler):
    """One write a record, to standard error as it is at that moment: a progress bar may have replaced it."""

    def __init__(self, form: str, file: str) -> None:
        super().__init__()
        self._form = form
        self._file = open(file, "a", encoding="utf-8", buffering=1) if file else None  # noqa: SIM115  for good
        if form:
            self.setFormatter(_formatter(form, colours=self._colours()))

    def emit(self, record: logging.LogRecord) -> None:
        if self.formatter is None:
            self.setFormatter(_formatter(self._form or _format_set(), colours=self._colours()))
        try:
            line = self.format(record)
        except Exception as error:  # its arguments do not fit its text, or cannot be shown: they may not be printed raw
            told = Told("record unreadable", {"why": f"{type(error).__name__} in {record.pathname}:{record.lineno}"})
            line = self.format(logging.LogRecord(record.name, logging.ERROR, "", 0, told, None, None))
        stream = self._file or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more, or it is closed: no reason to stop working, and nowhere to say so

    def _colours(self) -> bool | None:
        """None: not a terminal."""
        if self._file is not None or not sys.stderr.isatty():
            return None
        return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _format_set() -> str:
    from .settings import load

    try:
        return load().log_format
    except LadingError:  # whatever runs here asks for the settings too, and is refused by that
        return "auto"


def _formatter(form: str, *, colours: bool | None) -> logging.Formatter:
    """colours: None where nobody looks at a terminal."""
    from structlog import processors
    from structlog.stdlib import ProcessorFormatter

    for_people = form == "console" or (form == "auto" and colours is not None)
    last = (_for_people, _console(bool(colours))) if for_people else (processors.JSONRenderer(json.dumps),)
    return ProcessorFormatter(processors=[_entry, processors.format_exc_info, _cleaned, *last])


# -- processors of structlog


def _entry(_: Any, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A record as keys, the stable ones first."""
    record: logging.LogRecord = given["_record"]
    when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    told = record.msg if isinstance(record.msg, Told) else Told("message", {"message": given["event"].rstrip()})
    entry: dict[str, Any] = {"time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    entry |= {"level": record.levelname.lower(), "event": told.event, "logger": record.name, **_bound, **told.fields}
    if exception := given.get("exc_info"):
        entry["exc_info"] = exception
    return entry


def _cleaned(_: Any, method: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _clean(value) for key, value in entry.items()}


def _clean(value: Any) -> Any:
    """As plain JSON, without secrets."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {redacted(str(key)): _clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(one) for one in value]
    # Twice: half a secret where it was cut first, and not known for one, is not in what is left in the end.
    return _cut(redacted(_cut(str(value), 4 * LONGEST)), LONGEST)


def _cut(text: str, most: int) -> str:
    """At most so many characters of its beginning and its end."""
    lost, half = len(text) - most, most // 2
    return text if lost <= 0 else f"{text[:half]} [... {lost} characters ...] {text[-half:]}"


def _for_people(_: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What others say stands for itself; every further line of a traceback is marked as one."""
    if (message := entry.pop("message", None)) is not None:
        entry["event"] = _printable(message)
    else:
        del entry["logger"]
    if "exception" in entry:
        entry["exception"] = "\n".join(f"  | {_printable(line)}" for line in entry["exception"].splitlines())
    return entry


def _printable(text: str) -> str:
    """On one line, and nothing in it moves a terminal's cursor."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _console(colours: bool) -> Any:
    from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter, LogLevelColumnFormatter, plain_traceback

    style = ConsoleRenderer.get_default_column_styles(colours)
    levels = ConsoleRenderer.get_default_level_styles(colours)

    def bare(look: str, width: int = 0) -> KeyValueColumnFormatter:
        return KeyValueColumnFormatter(None, look, style.reset, str, width=width)

    return ConsoleRenderer(
        columns=[
            Column("time", bare(style.timestamp)),
            Column("level", LogLevelColumnFormatter(levels, style.reset)),
            Column("event", bare(style.bright, width=18)),
            Column("", KeyValueColumnFormatter(style.kv_key, style.kv_value, style.reset, shown)),
        ],
        sort_keys=False,
        exception_formatter=plain_traceback,
    )


# -- what to hide


def _secrets(environ: Mapping[str, str]) -> re.Pattern[str] | None:
    """Matches the secrets of the environment and of the settings, as they are and as they may be quoted."""
    from .settings import load  # not at the top: it reads YAML

    urls = list(environ.values())
    with contextlib.suppress(LadingError):  # a settings file that cannot be read gives no password away either
        urls.append(load(environ).broker_url)
    found = {value for name, value in environ.items() if _SECRET_NAME.search(name)}
    found |= {password for url in urls if (password := _password(url))}
    forms = {form for one in found if len(one) >= SHORTEST for form in _forms(one)}
    return re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))) if forms else None


def _password(url: str) -> str:
    """Of a URL, "" where there is none."""
    _, separator, rest = url.partition("://")
    return rest.rpartition("@")[0].partition(":")[2] if separator else ""


def _forms(secret: str) -> Iterable[str]:
    bare = unquote(secret)
    for one in (secret, bare):
        yield from (one, quote(one, safe=""), repr(one)[1:-1], json.dumps(one)[1:-1])
