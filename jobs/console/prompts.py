"""Questions to a person on a terminal; to a script, an error that says what was missing."""

import sys
from pathlib import Path

from jobs.errors import JobError


def interactive() -> bool:
    """Whether there is a person to ask: both directions are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def path_argument(given: Path | None, name: str, question: str, command: str, default: str = "") -> Path:
    """The argument as given or, on a terminal, as answered."""
    if given is not None:
        return given
    if not interactive():
        raise JobError(f"missing argument {name}; 'logpose {command} --help' shows an example")
    return Path(ask(question, default)).expanduser()


def ask(question: str, default: str = "") -> str:
    """Ask until there is an answer; Enter alone takes the default."""
    shown = f"{question} [{default}]: " if default else f"{question}: "
    while True:
        try:
            answer = input(shown).strip()
        except EOFError:  # Ctrl-D: nobody wants to answer
            print()
            raise KeyboardInterrupt from None
        if answer or default:
            return answer or default


def choose(question: str, choices: tuple[str, ...]) -> str:
    """Ask for one of the choices; their first letters, or more of them, will do. Enter takes the first."""
    while True:
        answer = ask(f"{question} ({' / '.join(choices)})", choices[0]).lower()
        matching = [choice for choice in choices if choice.startswith(answer)]
        if matching:
            return matching[0]
        print(f"Please answer {' or '.join(choices)}.")
