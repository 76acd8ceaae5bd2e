"""The page as a whole: self-contained, escaped, reproducible, and as a browser shows it."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.store import Dataset
from tests.jobs.report.pages import UNSAFE, Page, image_of


def test_page_is_self_contained(page: Page) -> None:
    assert page.html.startswith("<!DOCTYPE html>")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids) > 5
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in attributes.get("style", "")
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/") and tag == "img" and attributes["alt"]
        if "href" in attributes:
            assert attributes["href"] in {f"#{name}" for name in ids}
    assert not re.search(r"https?://|url\(|@import", page.html)
    assert len(page.html) < 5e6


def test_names_are_escaped(page: Page) -> None:
    assert UNSAFE not in page.html and "<i>0" not in page.html and "<dataset>" not in page.html
    assert UNSAFE in [row[0] for row in page.section("classes").rows]
    assert any(UNSAFE in attributes.get("title", "") for attributes in page.all("td"))
    assert "a <dataset>.zarr" in page.text
    shown = [attributes["alt"] for attributes in page.all("img")]
    assert any("<i>" in alt for alt in shown) and any("&amp;" in alt for alt in shown)


def test_images_are_small(page: Page) -> None:
    assert max(max(image_of(image["src"]).shape) for image in page.all("img")) <= 128


def test_retrain_command_is_quoted_for_the_shell(page: Page, run_dir: Path, data_path: Path) -> None:
    (command,) = [text for text in re.findall(r"<pre>(.*?)</pre>", page.html, re.DOTALL) if "train" in text[:20]]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {Page(command).text}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folder, config = run_dir.with_name("run-again"), run_dir / "config.toml"
    assert words == ["logpose", "train", str(data_path), str(folder), "--config", str(config)]
    assert Dataset.open(data_path).content_hash in page.text
    assert config.read_text() in page.text


# In a browser -----------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  const wide = document.documentElement;
  document.title = JSON.stringify({
    images: images.length, loaded: images.filter(image => image.naturalWidth > 0).length,
    wide: wide.scrollWidth, window: wide.clientWidth,
  });
});</script></body>"""


Browse = Callable[..., tuple[str, str]]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page; returns the output, and the messages on the browser's console."""
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --enable-logging=stderr"
    )

    def run(page: Path, *more: str) -> tuple[str, str]:
        command = [str(CHROMIUM), *options.split(), f"--user-data-dir={tmp_path / 'browser'}", *more, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return run


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_browser_shows_the_page_without_errors(browse: Browse, page: Page, run_dir: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    _, complaints = browse(run_dir / "report.html", f"--screenshot={shot}", "--window-size=1200,1600")
    assert complaints == "", "nothing violates the page's security policy"
    with Image.open(shot) as thumbnail:
        colours = np.unique(np.asarray(thumbnail.convert("RGB")).reshape(-1, 3), axis=0)  # (K, 3)
    assert len(colours) > 500, "the page is not blank"
    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.html).replace("</body>", MEASURE)
    (tmp_path / "measured.html").write_text(measured, encoding="utf-8")
    dom, complaints = browse(tmp_path / "measured.html", "--dump-dom", "--window-size=500,900")
    assert complaints == ""
    found = json.loads(re.findall(r"<title>(.*?)</title>", dom)[0])
    assert found["images"] == found["loaded"] == len(page.all("img")) > 20
    assert found["wide"] <= found["window"] <= 500, "nothing is cut off on a narrow screen"
