"""The program `spin-native`: its list of commands, its errors and its exit codes. Each command has a file of its own."""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

import click

from spin_native.errors import InputError
from spin_native.version import __version__

ERROR, INTERRUPTED, TERMINATED = 1, 130, 143

# Command -> its line in `spin-native --help`. A command's module is imported only when the command is used.
COMMANDS = {
    "demo": "Train and try a classifier on the reviews in this package.",
    "fit": "Train a classifier or a regressor on a file of labelled texts.",
    "predict": "Label texts, or the rows of a file.",
    "evaluate": "Score a saved classifier on labelled rows.",
    "calibrate": "Let easy texts stop at an early layer, with a bound on the accuracy lost.",
    "extract": "Store the pooled activations of a file's texts.",
    "explain": "Show which words and neurons speak for a classifier's answer.",
    "neurons": "List the salient neurons of a saved classifier.",
    "inspect": "Show one text inside a base model: tokens, and the neurons that stand out.",
    "neuron-gradients": "Write the gradient of a model's output by its neurons, for a file of prompts.",
    "prune": "Cut a model's feed-forward networks to their most important neurons, and save it.",
    "ablate": "Change neurons of a saved classifier's base model, and compare its answers.",
    "skill-neurons": "Measure how well each neuron of a model alone predicts the labels of texts.",
    "verify": "Compare a base model with transformers, layer by layer.",
    "doctor": "Show what is installed and what this machine has.",
}


class Commands(click.Group):
    """A group whose commands are `spin_native.cli.<name>.<name>`, with "_" for "-"."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"spin_native.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands)
@click.version_option(__version__)
def cli() -> None:
    """Read neurons out of language models, and classify texts with the salient ones.

    `spin-native COMMAND --help` explains a command.
    """


def run(arguments: Sequence[str] | None = None) -> None:
    """Run one command. An error is one line on stderr and an exit code, not a traceback.

    arguments: those of the command line; None: of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # whatever LC_ALL says: no text is lost
    if arguments is None:  # this process is ours
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that unfinished files are deleted
    warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
    try:
        cli.main(arguments, prog_name="spin-native", standalone_mode=False)
    except InputError as error:
        _stop(str(error), ERROR)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _stop("interrupted; finished shards of a store are kept, and no unfinished file", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("SPIN_NATIVE_TRACEBACK"):
            raise
        _stop(f"unexpected {type(error).__name__}: {error} (set SPIN_NATIVE_TRACEBACK=1 to see the traceback)", ERROR)


def _stop(message: str, code: int) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
