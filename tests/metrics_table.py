"""The tables of docs/metrics.md, from the declarations: `python -m tests.metrics_table` writes them."""

from __future__ import annotations

import re
from pathlib import Path

from lading.config.metrics import EVERYWHERE, EXPORTER, SWEEPING, WORKER, Series

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/metrics.md"
PARTS = {"worker": WORKER, "sweeping": SWEEPING, "exporter": EXPORTER, "everywhere": EVERYWHERE}


def table(series: tuple[Series, ...]) -> str:
    """One row a series."""
    lines = ["| series | kind | labels | |", "|---|---|---|---|"]
    for one in series:
        labels = "; ".join(
            f"`{label}`{': ' + ', '.join(values) if values else ''}" for label, values in one.labels.items()
        )
        lines.append(f"| `{one.full_name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """The document with every table made anew, between `<!-- PART -->` and the next empty line."""
    for part, series in PARTS.items():
        text, count = re.subn(
            rf"(<!-- {part} -->\n).*?\n(?=\n|\Z)",
            lambda found, one=series: f"{found[1]}{table(one)}\n",
            text,
            flags=re.DOTALL,
        )
        assert count == 1, part
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
