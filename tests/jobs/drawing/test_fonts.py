"""Text in any script: what can be drawn, and with which fonts."""

import os
import subprocess
import sys

from jobs.drawing.fonts import MISSING, count_undrawable, drawable, font_runs, load_font


def test_latin_text_is_drawn_with_one_font() -> None:
    assert drawable("Déjà vu, 5 $") == "Déjà vu, 5 $"
    ((file, run),) = font_runs("Déjà vu, 5 $")
    assert run == "Déjà vu, 5 $"
    assert load_font(file, 16).getname()[0] == "DejaVu Sans"


def test_decomposed_text_is_composed() -> None:
    assert drawable("e\u0301") == "\u00e9"


def test_missing_and_invisible_characters_become_boxes() -> None:
    assert drawable("a\U0010fffdb\u200bc") == f"a{MISSING}b{MISSING}c"
    assert drawable("a\nb") == r"a\x0ab"
    assert count_undrawable(["plain", "\U0010fffd", MISSING]) == 1


def test_runs_join_to_the_whole_text() -> None:
    text = drawable("a ルフィ b 한국어 \U0010fffd")
    assert "".join(run for _, run in font_runs(text)) == text


def test_fonts_in_a_locale_of_few_characters() -> None:
    """Some fallback fonts have names that the locale cannot write."""
    program = "from jobs.drawing.fonts import drawable; print(ascii(drawable(chr(0x3042) + ' b')))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" b'\n")
