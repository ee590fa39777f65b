"""The verbs that write what a deployment is told from what is configured here, so that nothing is said twice by hand."""

from __future__ import annotations

from pathlib import Path

import click

from ..config.words import counted

CONFIG_MAP = "lading-pools"


@click.group()
def render() -> None:
    """Write what a cluster is told, from what is configured here."""


@render.command()
@click.option(
    "--as",
    "form",
    type=click.Choice(("values", "configmap")),
    default="values",
    show_default=True,
    help="A block of the Helm chart's values, or a ConfigMap with pools.yaml.",
)
@click.option(
    "--check",
    metavar="VALUES.yaml",
    type=click.Path(dir_okay=False),
    help="Write nothing: compare the pools in this values file, and end with 2 where they differ.",
)
def pools(form: str, check: str | None) -> None:
    """Write the pools of pools.yaml for the Helm chart (deploy/helm/lading).

    What a pool is stays in pools.yaml alone; how it is deployed (capacity, nodes, times) goes into another values file.
    """
    from ..config.errors import UsageError
    from ..config.strict_yaml import load_mapping
    from ..schedulers.pools import load
    from ..schedulers.rendering import config_map, differences, values

    here = load()
    if check is None:
        click.echo(values(here) if form == "values" else config_map(here, CONFIG_MAP), nl=False)
        return
    found = differences(here, load_mapping(Path(check), UsageError), check)
    if found:
        lines = "\n  ".join(found)
        raise UsageError(f"{check} differs from pools.yaml in {counted(len(found), 'place')}:\n  {lines}")
    click.echo(f"{check} agrees with pools.yaml")


VERBS = (render,)
