"""Fonts for text in any script, by file: DejaVu Sans, and an installed font for each character that it lacks."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import cast

from PIL import ImageFont

from logpose.common.errors import printable

# Fonts with Chinese, Japanese and Korean, the best first. Pillow looks for them in the system's folders.
FALLBACK_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSansJP-Regular.otf", "NotoSansJP-Regular.ttf"),
    *("ヒラギノ角ゴシック W3.ttc", "Arial Unicode.ttf"),  # macOS
    *("YuGothM.ttc", "meiryo.ttc", "msgothic.ttc", "msyh.ttc", "malgun.ttf"),  # Windows
    *("ipaexg.ttf", "ipagp.ttf", "ipag.ttf", "TakaoPGothic.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    "DroidSansFallbackFull.ttf",
)
PILLOW_DEFAULT = ""  # Latin letters only, but always available
MISSING = "\u25a1"  # a box, in place of a character that no installed font has
_SIZE = 16  # pixels, to compare glyphs


def drawable(text: str) -> str:
    """The text as one line, with a box for each character that no installed font has."""
    return "".join(
        char if char.isprintable() and _font_with(char) is not None else MISSING
        for char in unicodedata.normalize("NFC", printable(text))
    )


def count_undrawable(names: Sequence[str]) -> int:
    """How many of the names have characters that no installed font has."""
    return sum(MISSING in drawable(name) for name in names if MISSING not in name)


def font_runs(text: str) -> Iterator[tuple[str, str]]:
    """Split `drawable` text into runs of one font: pairs of font file and run."""
    for file, run in groupby(text, _font_with):
        yield _installed()[0] if file is None else file, "".join(run)


@cache
def load_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `font_runs` for Pillow, `size` pixels high. Raises OSError where it is not installed."""
    if file == PILLOW_DEFAULT:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    return ImageFont.truetype(file, size)


@cache
def _font_with(char: str) -> str | None:
    """The first installed font that has the character; None if none does."""
    for file in _installed():
        # Pillow does not list a font's characters, but draws all missing ones alike; U+10FFFF is in no font.
        if char.isspace() or _glyph(file, char) != _glyph(file, "\U0010ffff"):
            return file
    return None


@cache
def _glyph(file: str, char: str) -> tuple[tuple[int, int], bytes]:
    mask = _unshaped(file).getmask(char)
    return mask.size, bytes(mask)


@cache
def _unshaped(file: str) -> ImageFont.FreeTypeFont:
    """The font without shaping, which may compose a missing character from others; matplotlib would not."""
    font = load_font(file, _SIZE)
    return font if file == PILLOW_DEFAULT else font.font_variant(layout_engine=ImageFont.Layout.BASIC)


@cache
def _installed() -> tuple[str, ...]:
    """Files of the installed fonts, in order of preference: DejaVu Sans (part of matplotlib), then the fallbacks."""
    matplotlib = find_spec("matplotlib")  # locates the package without importing it
    folder = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf" if matplotlib and matplotlib.origin else Path()
    found = []
    for file in (str(folder / "DejaVuSans.ttf"), *FALLBACK_FONTS):
        with suppress(OSError, UnicodeError):  # UnicodeError: in a locale that cannot write the font's name
            load_font(file, _SIZE)
            found.append(file)
    return (*found, PILLOW_DEFAULT)
