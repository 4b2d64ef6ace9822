"""The page in a real browser: telephone and desk, light and dark."""

import json
import re
import shutil

import pytest

from tests.report.histories import evaluation, expansion, names, write
from versatune_plugin.report import make_report

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

STRANGE = ("<script>alert(1)</script>", "$x_1$", "_a", "a" * 60, "法律与合同", "law")

TEXTS = """
const luminance = rgb => rgb.map(part => part / 255)
  .map(part => part > 0.04045 ? ((part + 0.055) / 1.055) ** 2.4 : part / 12.92)
  .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const background = element => {
  for (; element; element = element.parentElement) {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour.slice(0, 3);
  }
  return [255, 255, 255];
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
  if (!text || !element.getClientRects().length) continue;
  const style = getComputedStyle(element), svg = element.closest('svg');
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  const [one, other] = [numbers(svg ? style.fill : style.color).slice(0, 3), background(element)].map(luminance);
  found.push({
    text, in_svg: !!svg, pixels: parseFloat(style.fontSize) * scale,
    contrast: (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05),
  });
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of six domains with strange names and evaluations, and one of twenty."""
    six = write(expansion(STRANGE), tmp_path_factory.mktemp("six"))
    evaluation({"law": 0.4, STRANGE[0]: 0.3}).write(six / "versatune" / "evaluation.json")
    twenty = write(expansion(names(20), num_updates=12), tmp_path_factory.mktemp("twenty"))
    made = {}
    for name, folder in (("six", six), ("twenty", twenty)):
        made[name] = folder / "report.html"
        made[name].write_text(make_report([folder]).html(), encoding="utf-8")
    return made


@pytest.mark.parametrize("page", ["six", "twenty"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_can_be_read(browser, pages, page, scheme, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get("about:blank")
    browser.get_log("browser"), requests(browser)  # what was before, such as the browser's own first page
    browser.get(pages[page].as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(element => { element.open = true; })")

    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    texts = browser.execute_script(TEXTS)
    small = [text for text in texts if text["in_svg"] and text["pixels"] < 9]
    pale = [text for text in texts if text["contrast"] < 4.5]
    assert sum(text["in_svg"] for text in texts) > 50
    assert not small
    assert not pale
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    assert (max(map(int, re.findall(r"\d+", ink))) > 128) == (scheme == "dark")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
    assert requests(browser) <= {pages[page].as_uri(), "data:,"}


def requests(browser):
    """What the browser asked for since it was last asked."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
