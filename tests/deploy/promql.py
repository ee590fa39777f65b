"""What an expression of PromQL may say: the series that Lading's processes declare, with the labels and values that these have.

`labels_of` walks an expression as Prometheus would evaluate it, and knows of each part which labels are left. So it finds what `promtool`
and a server accept and answer with nothing: names and values that do not exist, labels that an aggregation has dropped, sides that
never match.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import promql_parser as promql

from lading.config import metrics

SCRAPED = frozenset({"job", "instance"})  # what every Prometheus adds to a series
OF_COUNTERS = {"rate", "irate", "increase"}
OF_ONE_VECTOR = OF_COUNTERS | {
    "avg_over_time", "changes", "max_over_time", "min_over_time", "clamp_min", "round", "sort_desc", "timestamp",
}  # fmt: skip
WITHOUT_LABELS = {"absent", "vector"}
SCALARS = {"time", "scalar"}
SETS = {"and", "or", "unless"}
AGGREGATIONS = {"sum", "avg", "min", "max", "count", "topk", "quantile"}

Labels = frozenset[str]


class Wrong(Exception):
    """An expression that names what is not there, or can have no result."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """A series as it is stored: with its labels, and the values of those that are known in advance."""

    counts: bool  # never falls but at a restart
    labels: Labels
    values: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


Known = dict[str, Shown]


def declared() -> Known:
    """Every series of every process of Lading, by the name that Prometheus stores; of a histogram all three."""
    found: Known = {}
    for one in (*metrics.EVERYWHERE, *metrics.WORKER, *metrics.SWEEPING, *metrics.EXPORTER):
        labels = frozenset(one.labels) | SCRAPED
        values = {label: known for label, known in one.labels.items() if known}
        if one.kind == "histogram":
            found[f"{one.full_name}_bucket"] = Shown(True, labels | {"le"}, values)
            found[f"{one.full_name}_sum"] = found[f"{one.full_name}_count"] = Shown(True, labels, values)
        else:
            found[one.full_name] = Shown(one.kind == "counter", labels, values)
    return found


def names_of(text: str) -> set[str]:
    """Of all series that an expression selects."""
    return {one.name for one in _parts(promql.parse(text)) if isinstance(one, promql.VectorSelector)}


def selectors_of(text: str) -> list[str]:
    """Of each selected series, a selector of all that have the labels that the expression matches, whatever their values."""
    found: list[str] = []
    for one in _parts(promql.parse(text)):
        if isinstance(one, promql.VectorSelector):
            there = ", ".join(f'{matcher.name}!=""' for matcher in one.matchers.matchers)
            found.append(f"{one.name}{{{there}}}")
    return found


def labels_of(text: str, known: Known) -> Labels:
    """The labels of an expression's result. Raises Wrong, or ValueError where it is no PromQL."""
    labels = _labels(promql.parse(text), known)
    return frozenset() if labels is None else labels


def unchosen(text: str, known: Known, chosen: str) -> list[str]:
    """Selected series that have the label pool, and whose pool is not matched with `chosen`."""
    selectors = [one for one in _parts(promql.parse(text)) if isinstance(one, promql.VectorSelector)]
    pools = [(one, [m.value for m in one.matchers.matchers if m.name == "pool"]) for one in selectors]
    return [str(one) for one, values in pools if "pool" in known[one.name or ""].labels and values != [chosen]]


def filled_by(template: str, pattern: str, labels: Labels) -> None:
    """Raises Wrong where a text asks for a label that the result does not have. `pattern` finds them."""
    for name in re.findall(pattern, template):
        if name not in labels:
            raise Wrong(f"{template!r}: the result has no label {name}, only {sorted(labels)}")


def _parts(node: object) -> Iterable[object]:
    yield node
    for attribute in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if (child := getattr(node, attribute, None)) is not None:
            yield from _parts(child)
    for child in getattr(node, "args", ()):
        yield from _parts(child)


def _labels(node: object, known: Known) -> Labels | None:
    """None for a scalar."""
    for kind, read in _READ.items():
        if isinstance(node, kind):
            return read(node, known)
    raise Wrong(f"no rule for {type(node).__name__}: {node}")


def _selected(node: promql.VectorSelector, known: Known) -> Labels:
    if node.name not in known:
        raise Wrong(f"{node.name}: there is no such series")
    shown = known[node.name]
    for matcher in node.matchers.matchers:
        _demand(node, {matcher.name}, shown.labels)
        values = shown.values.get(matcher.name)
        if not values or matcher.value.startswith("$"):
            continue
        exact = matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual)
        if not any(value == matcher.value if exact else re.fullmatch(matcher.value, value) for value in values):
            raise Wrong(f"{node}: {matcher.name} is never {matcher.value}, only one of {values}")
    return shown.labels


def _called(node: promql.Call, known: Known) -> Labels | None:
    name = node.func.name
    inner = [_labels(one, known) for one in node.args]
    vectors = [one for one in inner if one is not None]
    if name in SCALARS:
        return None
    if name in WITHOUT_LABELS:
        return frozenset()
    if name == "histogram_quantile":
        _demand(node, {"le"}, vectors[0])
        return vectors[0] - {"le"}
    if name not in OF_ONE_VECTOR:
        raise Wrong(f"{node}: no rule for {name}")
    if name in OF_COUNTERS:
        for one in _parts(node):
            if isinstance(one, promql.VectorSelector) and not known[one.name or ""].counts:
                raise Wrong(f"{name} of {one.name}, which is no counter")
    return vectors[0]


def _aggregated(node: promql.AggregateExpr, known: Known) -> Labels:
    inner = _labels(node.expr, known)
    if inner is None or str(node.op) not in AGGREGATIONS:
        raise Wrong(f"{node}: no rule for {node.op} of {node.expr}")
    named = frozenset(node.modifier.labels) if node.modifier else frozenset()
    _demand(node, named, inner)
    if str(node.op) == "topk":
        return inner
    dropping = node.modifier is not None and node.modifier.type == promql.AggModifierType.Without
    return inner - named if dropping else named


def _combined(node: promql.BinaryExpr, known: Known) -> Labels | None:
    left, right = _labels(node.lhs, known), _labels(node.rhs, known)
    if left is None or right is None:
        return right if left is None else left
    matching = node.modifier.matching if node.modifier else None
    if matching is None:
        if left != right:
            raise Wrong(f"{node.lhs} has {sorted(left)}, {node.rhs} has {sorted(right)}: they never match")
        return left
    named = frozenset(matching.labels)
    if matching.type == promql.LabelModifierType.Exclude:
        if left - named != right - named:
            raise Wrong(f"{node}: {sorted(left - named)} never matches {sorted(right - named)}")
        named = left - named
    _demand(node, named, left)
    _demand(node, named, right)
    if str(node.op) in SETS:
        return left & right if str(node.op) == "or" else left
    if node.modifier.card == promql.VectorMatchCardinality.OneToOne:
        return named
    raise Wrong(f"{node}: no rule for groups")


def _demand(node: object, wanted: Iterable[str], there: Labels) -> None:
    if missing := set(wanted) - there:
        raise Wrong(f"{node}: there is no label {', '.join(sorted(missing))} here, only {sorted(there)}")


_READ: dict[type, Callable[..., Labels | None]] = {
    promql.NumberLiteral: lambda node, known: None,
    promql.StringLiteral: lambda node, known: None,
    promql.VectorSelector: _selected,
    promql.MatrixSelector: lambda node, known: _selected(node.vector_selector, known),
    promql.SubqueryExpr: lambda node, known: _labels(node.expr, known),
    promql.ParenExpr: lambda node, known: _labels(node.expr, known),
    promql.UnaryExpr: lambda node, known: _labels(node.expr, known),
    promql.Call: _called,
    promql.AggregateExpr: _aggregated,
    promql.BinaryExpr: _combined,
}
