"""docs/runbook.md: an entry for each alert and for nothing else, with commands that can be typed and queries that have an answer."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from lading.cli.app import cli
from tests.deploy import promql
from tests.deploy.test_rules import ROOT, RUNBOOK, known_with, rules

pytestmark = pytest.mark.deploy

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PARTS = ["Means", "Look", "Do", "Ignore"]
SCRAPED = {"up": promql.Shown(False, promql.SCRAPED)}  # Prometheus' own, of each target


def entries() -> dict[str, str]:
    """Heading -> text, of all entries."""
    found = re.split(r"^## (.+)\n", (ROOT / RUNBOOK).read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def alerts() -> list[dict[str, dict[str, str]]]:
    return [rule for rule in rules() if "alert" in rule]


def parsed(command: str) -> None:
    """Fails unless this is a verb of ours, with options that it has."""
    words = shlex.split(command, comments=True)
    assert words.pop(0) == "lading", command
    verb: click.Command = cli
    context = click.Context(cli)
    while isinstance(verb, click.Group) and words and words[0] in verb.commands:
        verb = verb.commands[words.pop(0)]
        context = click.Context(verb, parent=context)
    assert verb is not cli, command
    try:
        verb.make_parser(context).parse_args(words)
    except click.UsageError as error:
        pytest.fail(f"{command}: {error}")


def test_every_alert_has_an_entry_and_every_entry_an_alert() -> None:
    """By name, in the order of the rules; the link of each alert leads to its entry."""
    names = list(dict.fromkeys(str(rule["alert"]).removeprefix("Lading") for rule in alerts()))
    assert list(entries()) == names
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == RUNBOOK
        assert anchor == str(rule["alert"]).removeprefix("Lading").lower()


@pytest.mark.parametrize("name", entries())
def test_an_entry_says_all(name: str) -> None:
    """What it means, with its severities and causes; where to look, what to do, when to ignore it."""
    text = entries()[name]
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == PARTS
    for rule in alerts():
        if rule["alert"] != f"Lading{name}":
            continue
        assert f"({rule['labels']['severity']})" in text
        for label, value in rule["labels"].items():
            assert label == "severity" or f'{label}="{value}"' in text


def test_commands_can_be_typed() -> None:
    """Every line behind a $, and every `lading` command in the text, names a verb and options that there are."""
    text = (ROOT / RUNBOOK).read_text()
    typed = [
        line.removeprefix("$ ")
        for language, block in FENCE.findall(text)
        if language == "console"
        for line in block.splitlines()
    ]
    mentioned = re.findall(r"`(lading [^`]+)`", FENCE.sub("", text))
    assert len(typed) > 10
    for command in [*typed, *mentioned]:
        parsed(command)


def test_a_container_is_asked_by_what_it_has() -> None:
    """No page has curl run in a pod: the images have the health check's script, at the place that is named."""
    text = " ".join((ROOT / RUNBOOK).read_text().split())
    (script,) = set(re.findall(r"kubectl exec POD -- python -P (\S+?)`", text))
    assert f"COPY deploy/docker/healthcheck.py {script}\n" in (ROOT / "deploy/docker/Dockerfile").read_text()
    assert not re.search(r"exec [^`]*-- curl", text)


def test_queries_name_what_is_exposed() -> None:
    """Every line of a promql block is a query over series, labels and values that there are."""
    known = known_with([rule for rule in rules() if "record" in rule]) | SCRAPED
    queries = [
        line
        for language, block in FENCE.findall((ROOT / RUNBOOK).read_text())
        if language == "promql"
        for line in block.splitlines()
    ]
    assert len(queries) > 10
    for query in queries:
        promql.labels_of(query, known)
