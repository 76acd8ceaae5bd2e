"""The command line: `main` runs a command and turns every error into one line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import typer

from jobs.commands import app
from jobs.commands.app import expected_value
from jobs.console.output import say_aside
from jobs.console.streams import discard_output, lost, prepare_streams
from jobs.errors import (
    NO_THREADS,
    Interrupted,
    JobError,
    OutputLostError,
    explain,
    gpu_errors,
    out_of_memory,
)
from logpose.common.errors import LogposeError, is_thread_limit

MAX_MESSAGE = 2000  # characters of a message: a recipe's key, for example, may be of any length
MAX_EXTRA = 100  # characters of a message about arguments that are too many: the shell may have expanded a *


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Every error is one line on standard error."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if "" in given:  # for Path it would be the current folder
            raise JobError("expected a value, found an empty argument; check the variable that it comes from")
        try:
            job = app(given, prog_name="logpose", standalone_mode=False)
        except OSError as error:  # it only reads the arguments, and prints the help
            raise lost(error) from error
        if job == Interrupted.exit_code:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        with gpu_errors():
            code = job() if callable(job) else int(job or 0)
        try:
            sys.stdout.flush()  # here, where a closed pipe can still be handled
        except OSError as error:
            raise lost(error) from error
        return code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("run the same command again to resume", Interrupted.exit_code, "interrupted")
    except OutputLostError as error:
        discard_output()
        return error.exit_code if error.is_pipe else _fail(str(error), error.exit_code)
    except LogposeError as error:
        return _fail(str(error), error.exit_code, "interrupted" if isinstance(error, Interrupted) else "error")
    except BrokenPipeError:  # of help, or of a progress bar
        discard_output()
        return 1
    except OSError as error:
        return _fail(*explain(error))
    except MemoryError as error:
        return _fail(out_of_memory(error), 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of Typer, or of the Click inside it
            return _fail(_usage(error, given), 2)
        if is_thread_limit(error):
            return _fail(NO_THREADS, 1)
        if os.environ.get("LOGPOSE_DEBUG"):
            traceback.print_exc()
        bug = f"{type(error).__name__}: {error}"
        return _fail(f"this is a bug: {bug}; set LOGPOSE_DEBUG=1 to see where, and report it", 1)


def _fail(message: str, code: int, prefix: str = "error") -> int:
    with suppress(OSError, ValueError):
        sys.stdout.flush()  # in a log file, what was printed before comes first
    if len(message) > MAX_MESSAGE:  # of a hostile file; the remedy is at the end
        message = f"{message[: MAX_MESSAGE // 2]}…{message[-MAX_MESSAGE // 2 :]}"
    say_aside(f"{prefix}: {message}")
    return code


def _usage(error: Exception, given: Sequence[str]) -> str:
    """Return a usage error as one line, with the help to read."""
    message = getattr(error, "message", "") or str(error)
    if getattr(error, "option_name", None) and "no such option" in message.lower():
        name = error.option_name  # type: ignore[attr-defined]
        message = f"no such option: {name}"
        if name in ("--json", "--quiet", "-q", "--verbose", "-v") and given[0] == name:
            message += f" before the command; write 'logpose COMMAND {name}'"
        elif possible := getattr(error, "possibilities", None):
            message += f"; did you mean {possible[0]}?"
    elif expected := expected_value(given[0], getattr(getattr(error, "param", None), "name", None) or ""):
        flag = max(error.param.opts, key=len)  # type: ignore[attr-defined]
        message = f"invalid value for '{flag}': {expected}, found {_value_of(flag, given)}"
    else:
        message = error.format_message()  # type: ignore[attr-defined]
    message = " ".join(message.split()).rstrip(".").replace("Value error, ", "")
    if (extra := message.lower().find("unexpected extra argument")) >= 0 and len(message) > extra + MAX_EXTRA:
        message = f"{message[: extra + MAX_EXTRA]}…; give a folder of images, not each of its files"
    message = message[:1].lower() + message[1:]
    names = [command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback]
    command = f"logpose {given[0]} --help" if given[0] in names else "logpose --help"
    return f"{message} (see '{command}')"


def _value_of(flag: str, given: Sequence[str]) -> str:
    """The last value of an option in the arguments, in quotes."""
    after = [word for before, word in pairwise(given) if before == flag]
    joined = [word.removeprefix(f"{flag}=") for word in given if word.startswith(f"{flag}=")]
    return repr([*after, *joined, ""][-2 if after or joined else -1])
