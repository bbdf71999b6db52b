"""The report in a real browser: at a desk, on a phone, in the dark."""

import json
import pathlib
import re
import shutil
import struct
import subprocess
import zlib

import pytest

from reslab.study.report import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic")
FLAGS += ("--no-first-run", "--disable-background-networking", "--hide-scrollbars")
FLAGS += ("--disable-component-update", "--disable-sync")
FLAGS += ("--allow-file-access-from-files",)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]

# What a reader would see, measured: boxes of all text and marks, in page pixels.
MEASURE = """
const frame = document.querySelector('iframe');
frame.onload = () => {
  const page = frame.contentDocument, found = {figures: [], scrolls: []};
  found.width = page.documentElement.scrollWidth;
  found.room = page.documentElement.clientWidth;
  const parts = 'p, h1, h2, h3, dl, nav, figure, .box, details';
  for (const part of page.querySelectorAll(parts)) {
    const box = part.getBoundingClientRect();
    if (box.width && box.right > found.room + 1) found.scrolls.push(part.outerHTML);
  }
  for (const svg of page.querySelectorAll('svg')) {
    const around = svg.getBoundingClientRect();
    const letters = [...svg.querySelectorAll('text')].map(text => {
      const box = text.getBoundingClientRect();
      return {text: text.textContent, left: box.left, right: box.right,
        top: box.top, bottom: box.bottom};
    });
    const scale = around.width / svg.viewBox.baseVal.width;
    found.figures.push({left: around.left, right: around.right, top: around.top,
      bottom: around.bottom, letters, size: 11 * scale,
      marks: svg.querySelectorAll('path, circle, rect').length});
  }
  document.getElementById('found').textContent = JSON.stringify(found);
};
frame.src = REPORT;
"""


def browse(folder, content, *flags):
    """Opens a page of our own around the report; returns what the browser printed."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(content)
    done = subprocess.run(
        [
            str(BROWSER),
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            *flags,
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def measure(folder, page, width, script=MEASURE):
    # A frame: the browser's own window would not be as narrow as a phone.
    content = (
        '<!doctype html><body style="margin:0"><pre id="found"></pre>'
        f'<iframe style="width:{width}px;height:900px;border:0"></iframe>'
        f"<script>{script.replace('REPORT', json.dumps(page.as_uri()))}</script>"
    )
    dumped = browse(folder, content, "--virtual-time-budget=10000", "--dump-dom")
    text = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)[1]
    for name, letter in (("lt", "<"), ("gt", ">"), ("amp", "&")):
        text = text.replace(f"&{name};", letter)
    return json.loads(text)


def distinct_rows(path: pathlib.Path):
    """The distinct rows of a PNG as they are stored: a blank page has two or three."""
    data = path.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8
    assert kind in (2, 6)
    packed, at = b"", 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += size + 12
    raw = zlib.decompress(packed)
    stride = width * (3 if kind == 2 else 4) + 1
    assert len(raw) == stride * height
    return {raw[i : i + stride] for i in range(0, len(raw), stride)}


def overlaps(letters):
    """Pairs of labels of one figure whose boxes share more than a hair."""
    hair = 1.0
    for i, a in enumerate(letters):
        for b in letters[i + 1 :]:
            wide = min(a["right"], b["right"]) - max(a["left"], b["left"])
            high = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
            # Boxes of lines of text are higher than their letters.
            if wide > hair and high > 3 * hair:
                yield a["text"], b["text"]


@pytest.fixture
def page(places):
    return write_report([places])


@pytest.fixture
def crowded(tmp_path, study_writer):
    """Ten cases with names like those of plain runs, of very different height."""
    cases = {
        f"residual=hyper(streams=4) learning_rate={10.0**-i:g} depth={2 + i}": {
            "level": 1.5 + 0.7 * i,
            "model__depth": 2 + i,
            "step_seconds": 0.01 * 3**i,
        }
        for i in range(10)
    }
    return write_report([study_writer(tmp_path / "crowded", cases, seeds=2)])


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("study, cases", [("page", 4), ("crowded", 10)])
def test_the_page_fits_and_its_labels_are_legible(
    tmp_path, request, study, cases, width
):
    found = measure(tmp_path, request.getfixturevalue(study), width)
    assert found["room"] == width
    assert found["width"] <= width, "the page scrolls sideways"
    assert not found["scrolls"]
    assert len(found["figures"]) == 2 + 2 + 2 * (3 + 1) + 4 + 3 * (cases + 1)
    for figure in found["figures"]:
        assert figure["marks"] > 0
        assert figure["right"] - figure["left"] > 100
        assert not list(overlaps(figure["letters"]))
        for letter in figure["letters"]:
            assert letter["left"] >= figure["left"] - 1, letter
            assert letter["right"] <= figure["right"] + 1, letter
            assert letter["bottom"] <= figure["bottom"] + 1, letter
        assert figure["size"] >= 10.5


STAYS = """
const frame = document.querySelector('iframe');
frame.onload = () => {
  const page = frame.contentDocument, found = [];
  for (const box of page.querySelectorAll('.box')) {
    const room = box.scrollWidth - box.clientWidth;
    if (!box.clientWidth || room < 1) continue;
    box.scrollLeft = room;
    const name = box.querySelector('tbody th').getBoundingClientRect();
    const edge = box.getBoundingClientRect();
    const cells = [...box.querySelectorAll('tbody tr:first-child td')];
    const last = cells.at(-1).getBoundingClientRect();
    found.push({moved: Math.abs(name.left - edge.left), left: name.right - edge.left,
      room: edge.width, last: last.right - edge.right});
  }
  document.getElementById('found').textContent = JSON.stringify(found);
};
frame.src = REPORT;
"""


def test_names_stay_while_a_table_is_scrolled_on_a_phone(tmp_path, crowded):
    found = measure(tmp_path, crowded, 390, STAYS)
    assert found  # Tables are wider than a phone.
    for box in found:
        assert box["moved"] <= 1
        assert box["left"] <= 0.5 * box["room"]
        assert box["last"] <= 1  # All columns can be reached.


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_screenshot_shows_something(tmp_path, page, width, scheme):
    picture = tmp_path / "picture.png"
    content = (
        '<!doctype html><body style="margin:0;overflow:hidden">'
        f'<iframe style="width:{width}px;height:2400px;border:0" src="{page.as_uri()}">'
    )
    dark = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ()
    browse(
        tmp_path,
        content,
        *dark,
        f"--window-size={max(width, 500)},2400",
        f"--screenshot={picture}",
    )
    assert len(distinct_rows(picture)) > 500
