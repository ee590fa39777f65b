"""JSON lines: one object per line, read by byte ranges. A line belongs to the range in which its first byte lies.

The types of columns are those of most of the first rows; see docs/sources.md.
"""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from ..config.errors import SourceError, nearest
from .formats import Asked, Fault, Piece, even_ranges, from_rows, shown
from .records import Input, Shard
from .snapshot import open_input

SAMPLE_FILES = 16
SAMPLE_ROWS = 1000
SAMPLE_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"

# What a column of this type may hold in JSON, and what of Python it is then.
KINDS: dict[pa.DataType, frozenset[type]] = {
    pa.string(): frozenset({str}),
    pa.int64(): frozenset({int}),
    pa.float64(): frozenset({float, int}),
    pa.bool_(): frozenset({bool}),
}
TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
JSON_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def schema(inputs: list[Input], names: list[str]) -> pa.Schema:
    """See `formats.Format`. Looks at the first rows of up to SAMPLE_FILES files; without any row, all is string."""
    rows: list[dict[str, Any]] = []
    fault = None
    for one in _spread(inputs):
        found, broken = _first_rows(one)
        rows += found
        fault = fault or (
            broken and f"{one.path} has no JSON object in its first lines ({broken}); one object per line is needed"
        )
    if fault and not rows:
        raise SourceError(fault)
    keys = dict.fromkeys(key for row in rows for key in row)
    for name in names:
        if rows and name not in keys:
            raise SourceError(f"{inputs[0].path} has no column {name!r} in its first rows{nearest(name, keys)}")
    return pa.schema([pa.field(name, _type([row.get(name) for row in rows])) for name in names])


def _spread(inputs: list[Input]) -> list[Input]:
    return (
        [inputs[start] for start, _ in even_ranges(0, len(inputs), -(-len(inputs) // SAMPLE_FILES))] if inputs else []
    )


def _first_rows(one: Input) -> tuple[list[dict[str, Any]], Fault | None]:
    rows: list[dict[str, Any]] = []
    first_fault = None
    with open_input(one) as file:
        for position, line in itertools.islice(lines(file, 0, min(one.size, SAMPLE_BYTES)), SAMPLE_ROWS):
            row = parse(position, line)
            if isinstance(row, Fault):
                first_fault = first_fault or row
            else:
                rows.append(row)
    return rows, first_fault


def _type(values: list[Any]) -> pa.DataType:
    """The type most of the values have; with any fraction among numbers, float. Objects are carried as JSON text."""
    kinds = collections.Counter(type(value) for value in values if value is not None)
    if kinds[float]:
        kinds[float] += kinds.pop(int, 0)
    kind = kinds.most_common(1)[0][0] if kinds else str
    if kind is list:
        inner = {type(item) for value in values if type(value) is list for item in value if item is not None}
        if inner and not inner & {list, dict}:
            return pa.list_(_type([item for value in values if type(value) is list for item in value]))
    return TYPES.get(kind, pa.string())


def cut(inputs: list[Input], shard_rows: int, limit: int) -> list[Shard]:
    """See `formats.Format`. Without a limit the lengths of lines are sampled, and a shard's rows are not known."""
    if limit:
        return _cut_rows(inputs, shard_rows, limit)
    shard_bytes = max(1, int(mean_line_bytes(inputs) * shard_rows))
    ranges = [(place, *range) for place, one in enumerate(inputs) for range in even_ranges(0, one.size, shard_bytes)]
    return [Shard(number, place, start, stop) for number, (place, start, stop) in enumerate(ranges)]


def _cut_rows(inputs: list[Input], shard_rows: int, limit: int) -> list[Shard]:
    shards: list[Shard] = []
    for place, one in enumerate(inputs):
        if not limit:
            break
        start = stop = rows = 0
        with open_input(one) as file:
            for position, line in itertools.islice(lines(file, 0, one.size), limit):
                if rows == shard_rows:
                    shards.append(Shard(len(shards), place, start, stop, rows=rows))
                    start, rows = stop, 0
                rows, stop = rows + 1, position + len(line)
                limit -= 1
        if rows:
            shards.append(Shard(len(shards), place, start, stop, rows=rows))
    return shards


def mean_line_bytes(inputs: list[Input]) -> float:
    """Bytes per row in the first rows of up to SAMPLE_FILES files; 1 without any row."""
    nbytes = rows = 0
    for one in _spread(inputs):
        end = 0
        with open_input(one) as file:
            for position, line in lines(file, 0, min(one.size, SAMPLE_BYTES)):
                end, rows = position + len(line), rows + 1
        nbytes += end
    return nbytes / rows if rows else 1.0


def lines(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its newline) of the lines that begin in [start, stop); blank lines are not rows."""
    position = start
    if start:
        file.seek(start - 1)
        position += len(file.readline()) - 1  # the line that began before, or only its newline
    for line in file:
        if position >= stop:
            return
        if not line.isspace() and (position or line.removeprefix(BOM).strip()):
            yield position, line
        position += len(line)


def parse(position: int, line: bytes) -> dict[str, Any] | Fault:
    """The object of one line. Of a key given twice the last counts; NaN and Infinity are floats, as Python writes them."""
    if position == 0:
        line = line.removeprefix(BOM)
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Fault("invalid-utf8", f"byte {error.start} of the line: {error.reason}")
    except (ValueError, RecursionError) as error:
        return Fault("invalid-json", shown(str(error)))
    if type(row) is not dict:
        return Fault("invalid-row", f"the line is not an object but {JSON_NAMES.get(type(row), 'null')}: {shown(row)}")
    return row


def read(inputs: list[Input], shard: Shard, asked: Asked) -> Iterator[Piece]:
    """See `formats.Format`. A missing key is null in a carried column and a reject in the id or a text."""
    one = inputs[shard.input]
    needed = {asked.id, *asked.texts}

    def build(rows: list[dict[str, Any]]) -> list[pa.Array]:
        return [_column(field, rows, field.name in needed) for field in asked.schema]

    with open_input(one) as file:
        records = ((one.path, at, len(line), parse(at, line)) for at, line in lines(file, shard.start, shard.stop))
        yield from from_rows(records, build, lambda row: row.get(asked.id), asked, shard)


def _column(field: pa.Field, rows: list[dict[str, Any]], needed: bool) -> pa.Array:
    """One column of many rows, all or nothing. Raises Fault."""
    name = field.name
    values = [row.get(name) for row in rows]
    if needed and None in values and not all(name in row for row in rows):
        raise Fault("invalid-row", f"no column {name!r}")
    values = _fit(values, field.type, name, nested_as_text=not needed)
    try:
        return pa.array(values, field.type)
    except UnicodeEncodeError as error:
        raise Fault(
            "invalid-utf8", f"column {name!r} holds half of a surrogate pair, which is not Unicode text"
        ) from error
    except (pa.ArrowException, OverflowError) as error:
        raise Fault("invalid-row", f"column {name!r} cannot be {field.type}: {shown(str(error))}") from error


def _fit(values: list[Any], type_: pa.DataType, name: str, *, nested_as_text: bool) -> list[Any]:
    """The values, ready for an array of this type. Arrow itself would cut 1.5 to 1 and a string to its letters."""
    found = set(map(type, values))
    found.discard(type(None))
    if pa.types.is_list(type_):
        _only(found, frozenset({list}), values, name, type_)
        items = [item for value in values if value is not None for item in value]
        fitted = iter(_fit(items, type_.value_type, name, nested_as_text=False))
        return [None if value is None else list(itertools.islice(fitted, len(value))) for value in values]
    if nested_as_text and pa.types.is_string(type_) and found & {list, dict}:
        found -= {list, dict}
        values = [
            json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value for value in values
        ]
    _only(found, KINDS[type_], values, name, type_)
    if pa.types.is_floating(type_) and int in found:
        try:
            return [None if value is None else float(value) for value in values]
        except OverflowError as error:
            raise Fault("invalid-row", f"column {name!r}: {error}") from error
    return values


def _only(found: set[type], kinds: frozenset[type], values: list[Any], name: str, type_: pa.DataType) -> None:
    if not found <= kinds:
        wrong = next(value for value in values if value is not None and type(value) not in kinds)
        raise Fault(
            "invalid-row", f"column {name!r} should be {type_}, but is {JSON_NAMES[type(wrong)]}: {shown(wrong)}"
        )
