"""The page in a real Chromium: charts are drawn, answer to pointer and keyboard, and fit phone, dark mode and paper."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from feature_gan_kd.report import read_run, write_page
from tests.report.fake_runs import LONG, change_description, write_run
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.slow

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 120_000  # milliseconds; the machine may be busy
LINES = ".scatterlayer .js-line"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, PROGRAMS)), playwright.chromium.executable_path)
        if not Path(program).exists():
            pytest.skip("there is no Chromium: apt-get install chromium, or .venv/bin/playwright install chromium")
        with playwright.chromium.launch(executable_path=program, timeout=PATIENCE) as launched:
            yield launched


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the files with the reports `one.html`, `several.html`, `young.html` and `hostile.html`."""
    folder = tmp_path_factory.mktemp("reports")
    one = read_run(write_run(folder / "one"))
    long = read_run(
        write_run(folder / ("long" * 20), names=LONG, edges=[(s, t) for s in range(4) for t in range(4) if s != t])
    )
    young = read_run(write_run(folder / "young", epochs=0))
    write_run(folder / "hostile")
    hostile = read_run(change_description(folder / "hostile", models=[{"name": HOSTILE}, {"name": "b"}]))
    write_page([one], folder / "one.html")
    write_page([long], folder / "long.html")
    write_page([one, read_run(write_run(folder / "logit", method="logit")), long], folder / "several.html")
    write_page([young], folder / "young.html")
    write_page([read_run(with_pictures(write_run(folder / "pictures", names=LONG)))], folder / "pictures.html")
    write_page([read_run(write_run(folder / "recorded", layers=["@0", "@1"]))], folder / "recorded.html")
    write_page([hostile], folder / "hostile.html")
    return folder


def with_pictures(run: Path) -> Path:
    """The run with Grad-CAM pictures of the images 0 and 4, each of one colour."""
    place = run / "grad-cam"
    place.mkdir()
    models = [{"prediction": HOSTILE, "probability": k / 4} for k in range(4)]
    for number in (0, 4):
        for k, suffix in enumerate(["", "-0", "-1", "-2", "-3"]):
            Image.new("RGB", (160, 160), (255, 60 * k, 0)).save(place / f"{number}{suffix}.png")
    images = [{"number": number, "label": "a" * 60, "models": models} for number in (0, 4)]
    layers = [{"layer": "blocks.5.norm1", "grid": [8, 8]}] * 4
    (place / "grad-cam.json").write_text(json.dumps({"layers": layers, "images": images}))
    return run


def opened(browser: Browser, path: Path, **options: Any) -> Page:
    """The report in a window of its own, which must neither complain nor ask for anything else."""
    context: BrowserContext = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked: list[str] = []
    page.on("console", lambda message: pytest.fail(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()]
    return page


@pytest.fixture(scope="module")
def window(browser: Browser, folder: Path) -> Page:
    return opened(browser, folder / "one.html")


def colors(page: Page) -> dict[str, str]:
    return page.evaluate(
        """() => ({
            page: getComputedStyle(document.body).backgroundColor,
            chart: document.querySelector('.plot .main-svg').style.background,
            line: document.querySelector('.scatterlayer .js-line').style.stroke,
            key: getComputedStyle(document.querySelector('.keys .key')).stroke,
            tick: document.querySelector('.xtick text').style.fill,
        })"""
    )


def hovered(page: Page) -> str:
    """What the first chart says of its second epoch of three."""
    chart = page.locator(".plot").first
    chart.scroll_into_view_if_needed()
    label = chart.locator(".hoverlayer")
    for attempt in range(60):  # plotly passes over movements that come too soon after others
        box = chart.locator(".nsewdrag").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 2 / 3 + attempt % 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(500)
        if label.locator("text").count():
            return label.text_content() or ""
    pytest.fail("no label appeared")


def light(color: str) -> bool:
    return sum(map(int, re.findall(r"\d+", color)[:3])) > 384


@pytest.mark.parametrize("name", ["one", "several", "long", "young", "recorded", "pictures", "hostile"])
def test_every_line_of_every_chart_is_drawn(name: str, browser: Browser, folder: Path) -> None:
    page = opened(browser, folder / f"{name}.html")
    counts = page.evaluate(
        f"""() => [...document.querySelectorAll('figure')].map((figure) =>
            [figure.querySelectorAll('{LINES}').length, figure.querySelectorAll('button').length])"""
    )
    assert len(counts) >= 7
    assert all(drawn == promised > 0 for drawn, promised in counts), counts
    shapes = page.evaluate(f"() => [...document.querySelectorAll('{LINES}')].map((line) => line.getAttribute('d'))")
    assert all(re.fullmatch(r"M[\d.,\-LHVMZ]+", shape) and len(shape) > 8 for shape in shapes)
    assert page.evaluate("() => window.hacked") is None
    page.context.close()


@pytest.mark.parametrize("name", ["recorded", "several"])
def test_every_vertical_axis_has_at_least_two_labels(name: str, browser: Browser, folder: Path) -> None:
    """A logarithmic axis too, whether its values span several decades or less than one."""
    page = opened(browser, folder / f"{name}.html")
    counts = page.evaluate(
        "() => [...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('.ytick text').length)"
    )
    assert len(counts) > 8
    assert min(counts) >= 2, counts
    page.context.close()


def test_hovering_shows_the_values(window: Page) -> None:
    shown = hovered(window)
    for words in ("epoch 2", "0 cifar_resnet20 : 64.00", "1 cifar_resnet32 : 64.25", "ensemble : 72.00"):
        assert words in shown


def test_a_press_in_the_legend_hides_a_line_and_shows_it_again(window: Page) -> None:
    figure = window.locator("figure").first
    key = figure.locator("button").nth(1)
    key.click()
    assert figure.locator(LINES).count() == 2
    assert key.get_attribute("aria-pressed") == "false"
    key.press("Enter")
    assert figure.locator(LINES).count() == 3
    assert key.get_attribute("aria-pressed") == "true"


def test_the_keyboard_reaches_legend_and_tables(window: Page) -> None:
    window.locator("figure button").first.focus()
    kinds = []
    for _ in range(3):
        window.keyboard.press("Tab")
        kinds.append(window.evaluate("() => document.activeElement.tagName"))
    assert kinds == ["BUTTON", "BUTTON", "SUMMARY"]
    window.keyboard.press("Enter")
    table = window.locator("figure").first.locator("table")
    assert table.is_visible()
    assert table.locator("tr").nth(2).inner_text().split() == ["2", "64", "64.25", "72"]


def test_the_best_and_the_last_are_marked(window: Page) -> None:
    points = window.locator("figure").first.locator(".scatterlayer .points").first.locator("path")
    sizes = [points.nth(k).bounding_box() for k in range(3)]
    assert [box is not None and box["width"] > 5 for box in sizes] == [False, True, True]


@pytest.mark.parametrize("name", ["one", "several", "long", "recorded", "pictures"])
def test_a_phone_has_nothing_to_scroll_sideways(name: str, browser: Browser, folder: Path) -> None:
    page = opened(
        browser, folder / f"{name}.html", viewport={"width": 360, "height": 800}, is_mobile=True, has_touch=True
    )
    assert page.evaluate("() => innerWidth") == 360
    assert page.evaluate("() => document.scrollingElement.scrollWidth") <= 360
    widths = page.evaluate("() => [...document.querySelectorAll('.plot .main-svg')].map((svg) => svg.clientWidth)")
    assert all(250 < width <= 344 for width in widths), widths
    page.context.close()


def test_pictures_are_shown(browser: Browser, folder: Path) -> None:
    page = opened(browser, folder / "pictures.html")
    sizes = page.evaluate("() => [...document.images].map((one) => [one.naturalWidth, one.clientWidth, one.alt])")
    assert [size[:2] for size in sizes] == [[160, 160]] * 10
    assert sizes[1][2].startswith(f"where model 0 {LONG[0]} sees aaa")
    assert page.get_by_role("columnheader", name="3 ").last.inner_text().endswith("at blocks.5.norm1, 8x8")
    assert page.evaluate("() => window.hacked") is None
    page.context.close()


def test_dark_mode_follows_the_system(window: Page) -> None:
    before = colors(window)
    assert (light(before["page"]), light(before["chart"]), light(before["tick"])) == (True, True, False)
    window.emulate_media(color_scheme="dark")
    window.wait_for_function("(old) => document.querySelector('.js-line').style.stroke !== old", arg=before["line"])
    dark = colors(window)
    assert (light(dark["page"]), light(dark["chart"]), light(dark["tick"])) == (False, False, True)
    assert dark["line"] == dark["key"] != before["line"]
    window.emulate_media(color_scheme="light")
    window.wait_for_function("(old) => document.querySelector('.js-line').style.stroke === old", arg=before["line"])


def test_paper_is_white_and_no_chart_is_cut(browser: Browser, folder: Path, tmp_path: Path) -> None:
    page = opened(browser, folder / "several.html", color_scheme="dark")
    page.evaluate(
        """() => addEventListener('beforeprint', () => {
            window.widths = [...document.querySelectorAll('.plot .main-svg')].map((svg) => svg.clientWidth);
            window.ground = document.querySelector('.plot .main-svg').style.background;
        })"""
    )
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    widths, ground = page.evaluate("() => [window.widths, window.ground]")
    assert all(200 < width <= 700 for width in widths), widths
    assert light(ground)
    assert not light(colors(page)["chart"]), "the screen is dark again"
    page.context.close()


def test_without_javascript_the_figures_are_there(browser: Browser, folder: Path) -> None:
    page = opened(browser, folder / "one.html", java_script_enabled=False)
    assert page.get_by_text("The charts need JavaScript.").is_visible()
    page.locator("summary").first.click()
    assert "64.25" in page.locator("figure table").first.inner_text()
    page.context.close()


def test_a_name_is_shown_as_it_is(browser: Browser, folder: Path) -> None:
    page = opened(browser, folder / "hostile.html")
    assert HOSTILE in page.locator(".models").inner_text()
    assert "</script><script>" in hovered(page)
    page.context.close()
