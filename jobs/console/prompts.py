"""Questions to a person on a terminal; for a script, an error that names the missing argument."""

import sys
from collections.abc import Callable
from pathlib import Path

from jobs.console.output import Verbosity, verbosity
from jobs.errors import Interrupted, JobError
from logpose.common.errors import printable
from logpose.common.outputs import local_path


def interactive() -> bool:
    """Return whether questions may be asked: input and output are a terminal, and not --quiet or --json."""
    streams = (sys.stdin, sys.stdout)
    return all(each is not None and each.isatty() for each in streams) and verbosity() >= Verbosity.NORMAL


def existing_path(path: Path) -> str:
    """Return what is wrong with a path to read, '' if it exists."""
    return "" if path.exists() else f"nothing at {path}"


def existing_dataset(path: Path) -> str:
    """Return what is wrong with a dataset's path, '' if there is one."""
    return "" if (path / "zarr.json").is_file() else f"no dataset at {path}"


def existing_dataset_or_run(path: Path) -> str:
    """Return what is wrong with the path of a dataset or of a training's folder, '' if it is one."""
    known = existing_dataset(path) == "" or is_run(path)
    return "" if known else f"neither a dataset nor the folder of a training at {path}"


def is_run(path: Path) -> bool:
    """Return whether a path is the folder of a training."""
    return any((path / name).is_file() for name in ("last.safetensors", "model.safetensors"))


def existing_model(path: Path) -> str:
    """Return what is wrong with the path of a model file or of a training's folder, '' if there is a model."""
    return "" if path.is_file() or (path / "model.safetensors").is_file() else f"no model file at {path}"


def unused_path(path: Path) -> str:
    """Return what is wrong with a path to write, '' if nothing is there."""
    return f"already something at {path}" if path.exists() else ""


def no_problem(path: Path) -> str:
    """Accept any path."""
    return ""


def path_argument(
    given: Path | None,
    name: str,
    question: str,
    command: str,
    problem: Callable[[Path], str] = no_problem,
    default: str = "",
) -> Path:
    """Return the argument as given or, on a terminal, ask until `problem` finds nothing wrong with the answer.

    Raises JobError where the argument is missing and there is no terminal to ask on.
    """
    if given is not None:
        return given
    if not interactive():
        raise JobError(f"missing argument {name}; 'logpose {command} --help' shows an example")
    while True:
        answer = local_path(Path(ask(question, default)).expanduser())
        found = problem(answer)
        if not found:
            return answer
        print(f"There is {printable(found)}. Try again, or press Ctrl-C to stop.")


def ask(question: str, default: str = "") -> str:
    """Ask until there is an answer; Enter alone means the default, Tab completes paths."""
    _complete_paths_with_tab()
    shown = printable(f"{question} [{default}]: " if default else f"{question}: ")
    while True:
        try:
            answer = input(shown).strip()
        except (EOFError, KeyboardInterrupt):  # Ctrl-D, Ctrl-C: the message goes on a line of its own
            print()
            raise Interrupted("nothing was started") from None
        if answer or default:
            return answer or default


def choose(question: str, choices: tuple[str, ...]) -> str:
    """Ask for one of the choices. The first letters are enough; Enter means the first choice."""
    while True:
        answer = ask(f"{question} ({' / '.join(choices)})", choices[0]).lower()
        matching = [choice for choice in choices if choice.startswith(answer)]
        if matching:
            return matching[0]
        print(f"Please answer {' or '.join(choices)}.")


def _complete_paths_with_tab() -> None:
    try:
        import readline
    except ImportError:  # Windows
        return
    readline.set_completer_delims("")  # the whole answer is one path
    readline.set_completer(_path_completion)
    libedit = "libedit" in (readline.__doc__ or "")  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def _path_completion(start: str, number: int) -> str | None:
    """Return the path number 0, 1, … that begins with `start`, None after the last. Called by readline."""
    head, slash, prefix = start.rpartition("/")
    try:
        entries = sorted(Path(head + slash).expanduser().iterdir())
    except OSError:
        return None
    names = [
        f"{head}{slash}{entry.name}{'/' * entry.is_dir()}"
        for entry in entries
        if entry.name.startswith(prefix) and (prefix or not entry.name.startswith("."))
    ]
    return names[number] if number < len(names) else None
