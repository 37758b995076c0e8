"""Reports in a real browser: Chromium, driven over its DevTools protocol by Playwright, with nothing to be reached.

Screenshots are compared with tests/golden/report_*.png (pytest --update-golden writes them): three tabs of 800 by 500 pixels
in the fonts that matplotlib brings, their times set to zeros and the graph left out, as `dot` draws it in other fonts. Curves
are made straight and heat maps even: after how many sweeps bits repeat may differ from processor to processor.
What is compared is the mean grey of cells of 20 by 20 pixels, as machines smooth letters in different ways and last digits
differ. The fifth largest difference of a cell may be TOLERANCE of the way from black to white. Ways of smoothing and
colour profiles made it 0.03 at the most; a missing chart or row of figures, wider margins or larger letters make it 0.07 to
0.22, which `test_tolerance_tells` checks.
"""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxsolve
from examples.densenet.model import cifar
from examples.made.model import MADE
from examples.pixelcnnpp.model import PixelCNNpp
from examples.rnn.models import build
from fxsolve.together import Seconds

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
Image = pytest.importorskip("PIL.Image")
matplotlib = pytest.importorskip("matplotlib")

GOLDEN = Path(__file__).parent / "golden"
TABS = ("summary", "dataflow", "schedule", "convergence", "source", "environment")
SHOWN = ("summary", "schedule", "convergence")  # in goldens
SIZE, CELLS = (800, 500), (40, 25)
TOLERANCE = 0.05
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 800}


def chromium() -> str | None:
    """The path of a Chromium that starts, or None."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


BROWSER = chromium()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt install chromium)")


def rnn() -> Any:
    model = next(iter(build(20, 16).values()))
    compiled = fxsolve.compile(model.eval(), solver=fxsolve.JacobiGS(block=16))
    text = torch.arange(96)[None] % 20
    compiled(text), compiled(text)
    return compiled


def made() -> Any:
    compiled = fxsolve.compile(MADE(36, (32,)).sample, solver=fxsolve.Jacobi())
    compiled(1), compiled(1)
    return compiled


def pixelcnnpp() -> Any:
    compiled = fxsolve.compile(PixelCNNpp(width=8, resnets=1, side=8).eval().sample_8bit, solver=fxsolve.Jacobi())
    compiled(1), compiled(1)
    return compiled


def densenet() -> Any:
    compiled = fxsolve.compile(cifar(16).eval(), solver=fxsolve.Jacobi())
    images = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    compiled(images)
    (runner,) = compiled._compiler.last.executable.runners.values()
    for together in runner.together:  # whatever is quicker on this machine: layers one by one
        together.seconds = Seconds(1.0, 2.0, 0.0, 0.0)
    compiled(images)
    return compiled


def original() -> Any:
    compiled = fxsolve.compile(torch.relu)
    compiled(torch.ones(2))
    return compiled


def never_called() -> Any:
    return fxsolve.compile(nn.Linear(2, 2))


EXAMPLES: dict[str, Callable[[], Any]] = {f.__name__: f for f in (rnn, made, pixelcnnpp, densenet)}
OTHERS: dict[str, Callable[[], Any]] = {f.__name__: f for f in (original, never_called)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The address of a report, written when it is first asked for."""
    folder, pages = tmp_path_factory.mktemp("reports"), {}

    def address(name: str) -> str:
        if name not in pages:
            torch.manual_seed(0)
            with torch.no_grad():
                pages[name] = (EXAMPLES | OTHERS)[name]().report(folder / f"{name}.html")
        return pages[name].as_uri()

    return address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND"
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", nowhere, "--disable-lcd-text"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, written: Callable[[str], str]) -> Iterator[Callable[..., Any]]:
    """`opened(name, **settings)`: the page of a report. At the end: it asked for nothing, and the console stayed empty."""
    contexts, asked, said = [], [], []

    def open_page(name: str, **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": DESK, "color_scheme": "light"} | settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(written(name))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("file:")] == [] and len(asked) == len(contexts)


def selected(page: Any) -> list[str]:
    """The sections that are in sight; the selected tab and the only one in the order of Tab must be theirs."""
    sections = [s.get_attribute("id") for s in page.locator("section").all() if s.is_visible()]
    assert [t.get_attribute("aria-controls") for t in page.locator("nav [aria-selected=true]").all()] == sections
    assert [t.get_attribute("aria-controls") for t in page.locator("nav [tabindex='0']").all()] == sections
    return sections


def test_tabs_by_click(opened: Callable[..., Any]) -> None:
    page = opened("made")
    assert selected(page) == ["summary"]
    for name in TABS[::-1]:
        page.get_by_role("tab", name=name.capitalize()).click()
        assert selected(page) == [name]
    page.goto(page.url.split("#")[0] + "#schedule")
    assert selected(page) == ["schedule"]


def test_tabs_by_keys(opened: Callable[..., Any]) -> None:
    page = opened("made")
    page.get_by_role("tab", name="Summary").focus()
    steps = [("ArrowRight", "dataflow"), ("ArrowRight", "schedule"), ("ArrowLeft", "dataflow"), ("End", "environment")]
    for key, expected in [*steps, ("ArrowRight", "summary"), ("ArrowLeft", "environment"), ("Home", "summary")]:
        page.keyboard.press(key)
        assert selected(page) == [expected]
        assert page.evaluate("document.activeElement.id") == f"tab-{expected}"
    page.keyboard.press("Tab")  # out of the tabs, into their section
    assert page.evaluate("document.activeElement.closest('section').id") == "summary"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_graph_by_keys_wheel_and_mouse(opened: Callable[..., Any]) -> None:
    page = opened("made", viewport={"width": 600, "height": 500})
    page.get_by_role("tab", name="Dataflow").click()
    pane = page.locator(".picture")
    pane.focus()

    def state() -> tuple[float, float, float]:
        return tuple(pane.evaluate("p => [Number(p.dataset.scale), p.scrollLeft, p.scrollTop]"))

    start = state()
    page.keyboard.press("+")
    assert state()[0] == pytest.approx(1.25 * start[0], abs=0.01)
    page.keyboard.press("-")
    assert state()[0] == pytest.approx(start[0], abs=0.01)
    page.keyboard.press("0")
    assert pane.evaluate("p => p.scrollWidth <= p.clientWidth + 1 && p.scrollHeight <= p.clientHeight + 1"), "not all in sight"
    for _ in range(8):
        page.keyboard.press("+")
    before = state()
    page.keyboard.press("ArrowRight"), page.keyboard.press("ArrowDown")
    assert state()[1:] == pytest.approx((before[1] + 60, before[2] + 60), abs=1)
    page.keyboard.press("ArrowLeft"), page.keyboard.press("ArrowUp")
    assert state()[1:] == pytest.approx(before[1:], abs=1)
    box = pane.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(), page.mouse.move(x - 40, y - 30), page.mouse.up()
    assert state()[1:] == pytest.approx((before[1] + 40, before[2] + 30), abs=1)
    page.keyboard.down("Control"), page.mouse.wheel(0, 100), page.keyboard.up("Control")
    page.wait_for_function("scale => Number(document.querySelector('.picture').dataset.scale) < scale", arg=before[0])


def test_buttons_of_the_graph(opened: Callable[..., Any]) -> None:
    page = opened("rnn")
    page.get_by_role("tab", name="Dataflow").click()
    pane, scales = page.locator(".picture"), []
    for name in ("zoom in", "zoom out", "see all of the graph"):
        page.get_by_role("button", name=name).click()
        scales.append(float(pane.get_attribute("data-scale")))
    assert scales[0] > scales[1]
    assert pane.evaluate("p => p.scrollWidth <= p.clientWidth + 1 && p.scrollHeight <= p.clientHeight + 1")


@pytest.mark.parametrize("name", [*EXAMPLES, *OTHERS])
def test_fits_a_phone(name: str, opened: Callable[..., Any]) -> None:
    """No section makes the page scroll sideways; all that is wider is in a pane."""
    page = opened(name, viewport=PHONE, has_touch=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for tab in page.get_by_role("tab").all():
        tab.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab.inner_text()


@pytest.mark.parametrize("scheme, page_colour", [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 28)")])
def test_light_and_dark(scheme: str, page_colour: str, opened: Callable[..., Any]) -> None:
    """The page follows the system, text can be read on what lies under it, in the graph too; the switch turns it round."""
    page = opened("made", color_scheme=scheme)
    colours = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    under, ink = page.locator("body").evaluate(colours)
    assert under == page_colour and contrast(under, ink) > 10
    page.get_by_role("tab", name="Dataflow").click()
    graph = page.locator(".picture svg")
    texts = set(graph.evaluate("s => [...s.querySelectorAll('.node text')].map(t => getComputedStyle(t).fill)"))
    shapes = "s => [...s.querySelectorAll('.node :is(polygon, ellipse, path)')].map(p => getComputedStyle(p).fill)"
    fills = {fill for fill in graph.evaluate(shapes) if fill.startswith("rgb(")}
    assert len(fills) >= 4, "the roles of calls are not told apart"
    assert min(contrast(fill, text) for fill in fills for text in texts) > 3
    page.get_by_role("button", name="switch to").click()
    assert page.locator("body").evaluate(colours)[0] != page_colour


def contrast(a: str, b: str) -> float:
    """The ratio of two colours' luminances, as WCAG defines it, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("settings, media", [({"java_script_enabled": False}, "screen"), ({}, "print")])
def test_all_sections_can_be_read(settings: dict[str, Any], media: str, opened: Callable[..., Any]) -> None:
    page = opened("made", **settings)
    page.emulate_media(media=media)
    assert [s.get_attribute("id") for s in page.locator("section").all() if s.is_visible()] == list(TABS)
    assert all(h.is_visible() for h in page.locator("h2").all())
    assert page.locator("nav").is_visible() == (media == "screen")
    assert page.evaluate("document.documentElement.scrollWidth") <= DESK["width"]


def test_the_policy_lets_nothing_through(browser: Any, written: Callable[[str], str]) -> None:
    page = browser.new_page()
    page.goto(written("made"))
    tried = "() => new Promise(done => { addEventListener('securitypolicyviolation', e => done(e.effectiveDirective)); TRY })"
    image = "new Image().src = 'http://127.0.0.1:9/'"
    for attempt, directive in [("fetch('http://127.0.0.1:9/')", "connect-src"), (image, "img-src")]:
        assert page.evaluate(tried.replace("TRY", attempt)) == directive
    added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
    assert page.evaluate(tried.replace("TRY", added)) == "script-src-elem" and page.evaluate("window.ran") is None
    page.close()


# -- goldens ----------------------------------------------------------------------------------------


def still() -> str:
    """The style of goldens: matplotlib's fonts, no graph, and heat maps of one shade."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [("Golden", "DejaVuSans", "400"), ("Golden", "DejaVuSans-Bold", "600 700"), ("Fixed", "DejaVuSansMono", "400")]
    rules = "* { font-family: Golden !important; } pre, code { font-family: Fixed !important; }"
    rules += ".picture, .curve circle { visibility: hidden; } .heat path { fill-opacity: 0.5; }"
    for family, file, weight in faces:
        font = base64.b64encode((folder / f"{file}.ttf").read_bytes()).decode()
        rules += f"@font-face {{ font-family: {family}; font-weight: {weight}; src: url(data:font/ttf;base64,{font}); }}"
    return rules


def shots(browser: Any, address: str, changes: str = "", **settings: Any) -> list[Any]:
    """Pictures of the tabs that goldens show, without what differs from run to run, with changes to the page's style."""
    page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, bypass_csp=True, **settings)  # the fonts are data
    page.goto(address)
    page.add_style_tag(content=still() + changes)
    page.evaluate("Promise.all([...document.fonts].map(face => face.load())).then(() => null)")  # else it is a matter of luck
    page.evaluate("document.querySelectorAll('.time').forEach(t => t.textContent = '0.00 ms')")
    page.evaluate("document.querySelectorAll('.curve').forEach(c => c.firstChild.setAttribute('points', '52,180 366,12'))")
    pictures = []
    for name in SHOWN:
        page.locator(f"#tab-{name}").click()
        page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
        page.evaluate("document.fonts.ready.then(() => null)")
        pictures.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    page.close()
    return pictures


def distance(ours: Any, theirs: Any) -> float:
    """The fifth largest difference of two pictures' cells, 1: black against white."""
    a, b = (picture.convert("L").resize(CELLS, Image.Resampling.BOX).tobytes() for picture in (ours, theirs))
    return sorted(abs(x - y) for x, y in zip(a, b, strict=True))[-5] / 255


def kept(name: str) -> list[Any]:
    """The tabs of a golden picture."""
    golden = Image.open(GOLDEN / f"report_{name}.png").convert("RGB")
    return [golden.crop((0, SIZE[1] * i, SIZE[0], SIZE[1] * (i + 1))) for i in range(len(SHOWN))]


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden(name: str, browser: Any, written: Callable[[str], str], request: pytest.FixtureRequest) -> None:
    pictures = shots(browser, written(name))
    if request.config.getoption("--update-golden"):
        column = Image.new("RGB", (SIZE[0], SIZE[1] * len(pictures)))
        for place, picture in enumerate(pictures):
            column.paste(picture, (0, SIZE[1] * place))
        column.quantize(32, dither=Image.Dither.NONE).save(GOLDEN / f"report_{name}.png", optimize=True)
    for shown, ours, theirs in zip(SHOWN, pictures, kept(name), strict=True):
        away = distance(ours, theirs)
        assert away <= TOLERANCE, f"{shown} of {name} looks different ({away:.3f}); pytest --update-golden if that is meant"


@pytest.mark.parametrize(
    "changes, tab",
    [
        (".chart { visibility: hidden; }", "convergence"),
        (".heat path { visibility: hidden; }", "convergence"),
        (".facts { display: block; }", "summary"),
        (".pane { display: none; }", "schedule"),
        ("body { padding: 1.5rem; }", "summary"),
        ("body { font-size: 17px; }", "schedule"),
    ],
)
def test_tolerance_tells(changes: str, tab: str, browser: Any, written: Callable[[str], str]) -> None:
    """A page that is broken is not taken for the golden one."""
    place = SHOWN.index(tab)
    assert distance(shots(browser, written("made"), changes)[place], kept("made")[place]) > 1.3 * TOLERANCE


def test_dark_is_not_taken_for_light(browser: Any, written: Callable[[str], str]) -> None:
    pictures = shots(browser, written("made"), color_scheme="dark")
    assert min(distance(a, b) for a, b in zip(pictures, kept("made"), strict=True)) > 10 * TOLERANCE
