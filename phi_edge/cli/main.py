"""The group of commands, and what becomes of errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import click

from phi_edge import __version__
from phi_edge.errors import PhiEdgeError

from .chat import chat
from .export import certify, export
from .inspect import doctor, info, verify
from .serve import serve
from .speed import bench, calibrate, estimate

logger = logging.getLogger(__name__)

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if all went well, 1 for a failure, 2 for bad use."""
    try:
        cli.main(arguments, prog_name="phi-edge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2 if isinstance(error, click.UsageError) else 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    except PhiEdgeError as error:
        _fail(str(error), 1)
    except ValueError as error:
        logger.info("what was refused", exc_info=True)  # or a fault of ours
        _fail(str(error), 2)
    except (OSError, MemoryError) as error:
        logger.info("what failed", exc_info=True)
        _fail(f"{type(error).__name__}: {error}", 1)


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done.")
def cli(*, verbose: bool) -> None:
    """Run Phi-3.5-vision on your own machine."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s"
    )


for _command in (export, chat, serve, info, verify, certify, doctor, estimate, calibrate, bench):
    cli.add_command(_command)
