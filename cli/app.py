"""The `lading` command: the group of verbs, what an error looks like, and which exit code it gives.

No module of this room imports torch, pyarrow or Lance at its top; verbs import what they need when they run.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any

import click

from ..config import logs
from ..config.errors import LadingError, UsageError
from . import jobs, models, outputs, queued, queues, render, worker
from .streams import READER_LEFT, ReaderLeft, noticing_readers, print_any_letter

INTERRUPTED = 130  # 128 + SIGINT, as shells count
WORKER_PACKAGES = {"huggingface_hub", "safetensors", "tokenizers", "torch", "transformers"}
SHELLS = ("bash", "zsh", "fish")


class _Verbs(click.Group):
    """Lists the verbs in the order of use, not of the alphabet, and sees broken pipes before click does."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        with noticing_readers():  # --help is printed here
            return super().make_context(*given, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with noticing_readers():
            return super().invoke(ctx)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lading")
@click.option(
    "-v",
    "--verbose",
    count=True,
    help="Say what is decided on the way: kernels, where the model came from. Twice: more.",
)
def cli(verbose: int) -> None:
    """Run small models over documents, exactly once per row, into LanceDB or Parquet.

    Exit codes: 0 done, 1 internal error, 2 refused before any work, 3 unfinished (the same command resumes), 130 interrupted.
    """
    logs.setup((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


for _verb in (*jobs.VERBS, *queued.VERBS, *worker.VERBS, *queues.VERBS, *outputs.VERBS, *models.VERBS, *render.VERBS):
    cli.add_command(_verb)


@cli.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print shell completion.

    In the shell's start-up file: eval "$(lading completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # SHELLS are those that click knows
    click.echo(kind(cli, {}, "lading", "_LADING_COMPLETE").source())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default); returns the exit code. Never a traceback, unless LADING_DEBUG=1."""
    print_any_letter()
    try:
        return cli.main(arguments, prog_name="lading", standalone_mode=False) or 0
    except ReaderLeft:
        return READER_LEFT
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("lading: interrupted", err=True)
        return INTERRUPTED
    except LadingError as error:
        _debug()
        click.echo(f"lading: {logs.redacted(str(error))}", err=True)
        return error.exit_code
    except Exception as error:
        _debug()
        if isinstance(error, ModuleNotFoundError) and error.name in WORKER_PACKAGES:
            click.echo(f"lading: this verb runs a model and needs {error.name}: pip install 'lading[worker]'", err=True)
            return UsageError.exit_code
        click.echo(
            f"lading: internal error: {type(error).__name__}: {logs.redacted(str(error))} ({_place(error)})\n"
            "  This is a defect of lading. Please report this line with what LADING_DEBUG=1 prints for the same command.",
            err=True,
        )
        return 1


def _debug() -> None:
    if os.environ.get("LADING_DEBUG") == "1":
        click.echo(logs.redacted(traceback.format_exc()), err=True)


def _place(error: Exception) -> str:
    """The innermost line of ours that the error passed."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if os.path.abspath(frame.filename).startswith(root)
    ]
    return (
        f"{os.path.relpath(frames[-1].filename, root)}:{frames[-1].lineno}"
        if frames
        else f"python {sys.version.split()[0]}"
    )
