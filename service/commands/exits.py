"""How a command ends: the exit codes, and known errors as one plain message with a hint.

0   fine
1   a check that failed (selfcheck), a server that refused or left
2   wrong usage or configuration
3   a checkpoint that cannot be used
70  the engine died, or was ended by the watchdog
130 Ctrl-C
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_CHECKPOINT = 3
EXIT_ENGINE_DEAD = 70
EXIT_INTERRUPTED = 130


def fail(message: str, code: int) -> NoReturn:
    """Print one plain message on the error stream and leave with ``code``."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def known_errors() -> Iterator[None]:
    """Ends the command with the code and the message of an error that is the user's to mend."""
    from bitnet_model.errors import BackendUnavailable, CheckpointError
    from service.commands.client import ServerError
    from service.config import ConfigError
    from service.engine.errors import EngineDead

    try:
        yield
    except (ConfigError, BackendUnavailable) as error:
        fail(str(error), EXIT_CONFIG)
    except CheckpointError as error:
        fail(str(error), EXIT_CHECKPOINT)
    except ServerError as error:
        fail(str(error), EXIT_FAILED)
    except EngineDead as error:
        fail(f"the engine stopped: {error.reason}", EXIT_ENGINE_DEAD)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
