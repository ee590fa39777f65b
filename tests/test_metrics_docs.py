"""docs/metrics.md says what is declared, and what can be typed."""

from __future__ import annotations

import re
import shlex

import click

from lading.cli.app import cli
from lading.config import settings
from lading.config.metrics import PREFIX
from tests.metrics_table import DOCUMENT, PARTS, written
from tests.test_docs import commands

TEXT = DOCUMENT.read_text()


def test_the_tables_are_those_of_the_declarations() -> None:
    """Every series with its kind, labels and help; `python -m tests.metrics_table` writes them anew."""
    assert written(TEXT) == TEXT


def test_series_that_are_named_exist() -> None:
    """In its words and queries too."""
    known = {one.full_name for part in PARTS.values() for one in part}
    named = set(re.findall(rf"\b(?<!/){PREFIX}\w+", TEXT))
    assert named - known == set()
    short = {one.removeprefix(PREFIX) for one in known}
    assert set(re.findall(r"`((?!lading_)\w+_(?:total|seconds|rows))`", TEXT)) <= short


def test_its_commands_have_these_options() -> None:
    """What is typed is understood, and settings have the defaults that it states."""
    verbs = [shlex.split(line, comments=True) for line in commands(DOCUMENT) if line.startswith("lading ")]
    assert [words[1] for words in verbs] == ["up", "exporter"]
    for _, verb, *words in verbs:
        command = cli.commands[verb]
        with click.Context(command) as context:
            command.parse_args(context, [*words])
    found = settings.load({})
    assert (found.metrics_port, found.metrics_bind, found.price_per_hour, found.capacity) == (
        0,
        "127.0.0.1",
        0.0,
        "on-demand",
    )
    assert set(re.findall(r"^\| `(\w+)` \| [0`o]", TEXT, re.MULTILINE)) == {
        "metrics_port",
        "metrics_bind",
        "price_per_hour",
        "capacity",
    }
