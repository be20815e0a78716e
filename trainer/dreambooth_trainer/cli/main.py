"""The `dreambooth` command and its exit codes."""

from __future__ import annotations

import os
import sys

import click
from rich.console import Console
from rich.text import Text

from dreambooth_api.environment import DEBUG, ExitCode
from dreambooth_api.errors import ThresholdError, TransientError, UserError
from dreambooth_api.status import printable
from dreambooth_trainer.cli.process import set_up_process
from dreambooth_trainer.cluster.interrupts import handle_sigterm

EXIT_CODES = f"""
Exit codes: {ExitCode.DONE} done; {ExitCode.FAILED} failed, the same command may succeed and continues where it stopped;
{ExitCode.INVALID_INPUT} invalid input, the same command fails again; {ExitCode.BELOW_THRESHOLDS} trained, but a score
is below the job's thresholds; {ExitCode.INTERRUPTED} interrupted, the same command continues.
"""
COMMANDS = {
    "init": "dreambooth_trainer.cli.init:init",
    "run": "dreambooth_trainer.cli.run:run",
    "plan": "dreambooth_trainer.cli.plan:plan",
    "validate": "dreambooth_trainer.cli.plan:validate",
    "report": "dreambooth_trainer.cli.report:report",
    "verify": "dreambooth_trainer.cli.verify:verify",
    "generate": "dreambooth_trainer.cli.generate:generate",
    "score": "dreambooth_trainer.cli.score:score",
    "bench": "dreambooth_trainer.cli.bench:bench",
    "hypernetwork": "dreambooth_trainer.cli.hypernetwork:hypernetwork",
    "erase": "dreambooth_trainer.cli.erase:erase",
    "sprites": "dreambooth_trainer.cli.sprites:sprites",
    "completion": "dreambooth_trainer.cli.completion:completion",
}


class LazyGroup(click.Group):
    """Imports a command when it is needed, so that the help text does not need torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        return getattr(__import__(module, fromlist=[attribute]), attribute)


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dreambooth-operator")
def cli() -> None:
    """Fine-tune a text-to-image model on a few images of one subject."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code."""
    set_up_process()
    handle_sigterm()
    # Suppresses a warning in every process about image processors that need torchvision, which are not used.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(run_cli(arguments))


def run_cli(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    errors = Console(stderr=True)
    try:
        cli.main(args=arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ExitCode.INVALID_INPUT
    except UserError as error:
        for issue in error.issues:
            errors.print(_labeled("error", str(issue)), soft_wrap=True)
        return ExitCode.BELOW_THRESHOLDS if isinstance(error, ThresholdError) else ExitCode.INVALID_INPUT
    except (KeyboardInterrupt, click.Abort):
        errors.print("Interrupted. The same command continues where it stopped.")
        return ExitCode.INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        errors.print(_labeled("failed", _one_line(error)), soft_wrap=True)
        errors.print(f"The same command continues from the last checkpoint. Set {DEBUG}=1 to show a traceback.")
        return ExitCode.FAILED
    return ExitCode.DONE


def _one_line(error: BaseException) -> str:
    # Errors of Ray workers are wrapped, without their errno.
    error = getattr(error, "cause", None) or error
    if isinstance(error, TransientError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or ''}: {os.strerror(error.errno)}".lstrip(": ")
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _labeled(label: str, text: str) -> Text:
    """A line that interprets no markup in `text`."""
    return Text.assemble((label, "red"), " ", printable(text))
