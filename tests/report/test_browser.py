"""The page in a real browser, opened from disk: no console error, a gallery that filters, numbers on hover, nothing run that should not."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from gift_train.report.command import report_command
from gift_train.report.page import write_page
from gift_train.report.runs import load_runs
from gift_train.report.summary_table import summary_rows

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not found: apt-get install chromium chromium-driver"),
]

Open = Callable[..., "webdriver.Chrome"]


@pytest.fixture
def browser() -> Iterator[Open]:
    """`browser(path, width=..., dark=...)` opens a file and returns the driver."""
    opened = []

    def open_file(path: Path, width: int = 1200, *, dark: bool = False) -> "webdriver.Chrome":
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        opened.append(driver)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}  # a window cannot be as narrow as a phone
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        driver.get(path.as_uri())
        return driver

    yield open_file
    for driver in opened:
        driver.quit()


@pytest.fixture
def report(runs_with_pictures: Path, tmp_path: Path) -> Path:
    report_command([runs_with_pictures], tmp_path / "report", as_json=False)
    return tmp_path / "report" / "mini" / "index.html"


def page_of(runs: Path, folder: Path) -> Path:
    """The page alone, without the pictures beside it."""
    found = load_runs([runs])
    write_page(folder / "index.html", found, summary_rows(found), [])
    return folder / "index.html"


def find(driver: "webdriver.Chrome", selector: str) -> list:
    return driver.find_elements("css selector", selector)


def screenshot(driver: "webdriver.Chrome", path: Path) -> Image.Image:
    """The whole page, not only what fits the window."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    width = driver.execute_script("return innerWidth")
    screen = {"width": width, "height": min(height, 12_000), "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.save_screenshot(str(path))
    return Image.open(path)


def test_page_opens_without_a_complaint_and_runs_no_caption(report: Path, browser: Open) -> None:
    driver = browser(report)
    assert driver.title == "GIFT report: mini"
    assert driver.get_log("browser") == []
    assert driver.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_gallery_filters_by_task_source_class_and_caption(report: Path, browser: Open) -> None:
    driver = browser(report)

    def choose(selector: str, value: str) -> list[str]:
        driver.execute_script(
            "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}))", selector, value,
        )  # fmt: skip
        return [figure.get_attribute("data-task") for figure in find(driver, "[data-gallery] figure:not([hidden])")]

    assert len(choose("[data-search]", "")) == 24
    assert choose("[data-filter=task]", "digits") == ["digits"] * 8
    assert len(choose("[data-filter=source]", "shapes")) == 4
    assert len(choose("[data-filter=class]", "class 1")) == 2
    assert find(driver, "[data-count]")[0].text == "2 images"
    choose("[data-filter=source]", "")
    choose("[data-filter=class]", "")
    assert len(choose("[data-search]", "<SCRIPT>")) == 2
    choose("[data-search]", "")
    choose("[data-sort]", "gain:-1")
    gains = [float(figure.get_attribute("data-gain")) for figure in find(driver, "[data-gallery] figure:not([hidden])")]
    assert gains == sorted(gains, reverse=True)


def test_numbers_appear_on_hover_and_on_the_arrow_keys(report: Path, browser: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = browser(report)
    tip = find(driver, "#tip")[0]
    cells = find(driver, ".heat td[data-tip]")
    webdriver.ActionChains(driver).move_to_element(cells[4]).perform()
    assert tip.is_displayed()
    assert tip.text == cells[4].get_attribute("data-tip")
    table = find(driver, ".heat")[0]
    table.send_keys(Keys.ARROW_RIGHT)
    table.send_keys(Keys.ARROW_RIGHT)
    table.send_keys(Keys.ARROW_DOWN)
    assert tip.text == cells[4].get_attribute("data-tip")
    table.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    chart = find(driver, "#forgetting ~ .panel .charts svg[data-walk]")[0]
    chart.send_keys(Keys.ARROW_RIGHT)
    assert tip.text.startswith("gift, zero-shot: ")


def test_a_method_can_be_hidden_in_every_chart(report: Path, browser: Open) -> None:
    driver = browser(report)
    find(driver, ".legend button")[0].click()
    assert not any(line.is_displayed() for line in find(driver, "g[data-line='0']"))
    assert all(button.get_attribute("aria-pressed") == "false" for button in find(driver, "button[data-line='0']"))


@pytest.mark.parametrize(("name", "width", "dark"), [("light", 1200, False), ("dark", 1200, True), ("narrow", 360, False)])
def test_page_fits_its_width_in_light_and_dark(report: Path, browser: Open, tmp_path: Path, name: str, width: int, dark: bool) -> None:
    driver = browser(report, width, dark=dark)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    picture = screenshot(driver, tmp_path / f"{name}.png").convert("L")
    paper = picture.getpixel((2, 2))
    assert paper < 60 if dark else paper > 240
    assert len(picture.getcolors(256)) > 50


@pytest.mark.parametrize(("width", "beside_each_other"), [(1600, 2), (1280, 2), (800, 1), (360, 1)])
def test_matrices_stand_beside_each_other_as_far_as_the_window_is_wide(
    browser: Open, tmp_path: Path, save_run: Callable[..., Path], width: int, beside_each_other: int
) -> None:
    datasets = ("aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "oxford_pet", "stanford_cars", "sun397")
    for recipe in ("finetune", "gift", "l2", "zscl"):
        save_run(tmp_path / "runs" / recipe, recipe, datasets=datasets)
    driver = browser(page_of(tmp_path / "runs", tmp_path), width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = [matrix.rect for matrix in find(driver, ".maps > details")]
    assert sum(box["y"] == boxes[0]["y"] for box in boxes) == beside_each_other
    assert max(box["x"] + box["width"] for box in boxes) > 0.9 * width  # the right half is not empty
    inside = driver.execute_script("const one = document.querySelector('.maps .scroll'); return one.scrollWidth > one.clientWidth")
    assert inside == (width == 360)  # there the matrix scrolls inside itself


def test_matrices_of_a_label_space_are_chosen_or_shown_beside_each_other(browser: Open, runs_in_three_spaces: Path, tmp_path: Path) -> None:
    driver = browser(page_of(runs_in_three_spaces, tmp_path), 1600)

    def shown() -> list[str]:
        return [matrix.get_attribute("data-space") for matrix in find(driver, "[data-space]") if matrix.is_displayed()]

    assert shown() == ["union-all"] * 2
    find(driver, "[data-show=known]")[0].click()
    assert shown() == ["known"] * 2
    assert find(driver, "[data-show=known]")[0].get_attribute("aria-pressed") == "true"
    find(driver, "[data-show='']")[0].click()
    assert shown() == ["union-all", "known", "union-seen"] * 2
    rows = [matrix.rect["y"] for matrix in find(driver, "[data-space]")]
    assert rows[0] == rows[1] == rows[2] < rows[3]


def test_gallery_of_an_output_folder_shows_its_files_and_filters(browser: Open, tmp_path: Path) -> None:
    def generate(*arguments: object) -> None:
        line = [str(Path(sys.executable).parent / "gift-generate"), *map(str, arguments)]
        subprocess.run(line, check=True, capture_output=True, timeout=300)

    (tmp_path / "nasty.txt").write_text("<script>document.title = 'owned'</script>\n")
    nasty = ("--caption-file", tmp_path / "nasty.txt", "--class-name-weight", 1)
    generate("plan", "--order", "mini", "--images-per-task", 6, *nasty, "--out", tmp_path / "plan.parquet")
    flat = ("--model", "flat-color", "--height", 16, "--width", 16)
    generate("render", "--plan", tmp_path / "plan.parquet", "--out", tmp_path / "out", *flat)
    generate("show", "--out", tmp_path / "out", "--html", tmp_path / "gallery")
    driver = browser(tmp_path / "gallery" / "pages" / "page-000001.html")
    assert driver.title == "out: pictures, page 1"
    pictures = find(driver, "img")
    assert len(pictures) == 36
    assert driver.execute_script("return document.images[0].complete && document.images[0].naturalWidth") == 16
    field = find(driver, "input")[0]
    field.send_keys("owned")
    shown = [figure for figure in find(driver, "figure") if figure.is_displayed()]
    assert 0 < len(shown) < 36
    assert find(driver, "output")[0].text == f"{len(shown)} pictures"
    driver.get((tmp_path / "gallery" / "index.html").as_uri())
    choose = "const field = document.querySelector('[name=task]'); field.value = 'mini_flags';"
    driver.execute_script(choose + "field.dispatchEvent(new Event('input', {bubbles: true}))")
    assert find(driver, "output")[0].text == "6 pictures"
    assert driver.get_log("browser") == []
