"""Every page of the documentation, opened in a browser: links, images, errors, formulas.

`DECISIONPPL_SITE` names the built site (`./check` builds it); `CI` makes a missing browser an
error. Nothing outside of the site may be asked for.
"""

import contextlib
import functools
import http.server
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import threading
import urllib.parse
from pathlib import Path

import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl import cli, inference, models

SITE = os.environ.get("DECISIONPPL_SITE", "")
PAGES = sorted(str(p.relative_to(SITE)) for p in Path(SITE).rglob("*.html")) if SITE else []

_MODULES = ("rules", "lookahead", "experiment", "kernels", "means", "plots", "testing",
            "testing.reference", "testing.strategies")  # fmt: skip

of_site = pytest.mark.skipif(not SITE, reason="DECISIONPPL_SITE names no built site")


@pytest.fixture(scope="module")
def address():
    """Address of a server of the site on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that finds no host but this one."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium and chromedriver on the PATH")
        pytest.skip("no chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--window-size=1280,1600",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    made.get("about:blank")  # leaves the page that a new window shows
    yield made
    made.quit()


# what a page holds, read in the page itself
_LOOK = """
return {
  title: document.title,
  headings: document.querySelectorAll('h1').length,
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  blank: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
  // described by words, not by the name of a file
  silent: [...document.images].filter(i => !i.alt || i.alt.includes('_images')).map(i => i.src),
  unreadable: [...document.querySelectorAll('math')].filter(
    m => m.getBoundingClientRect().width === 0 && m.offsetParent).length,
  errors: [...document.querySelectorAll('merror, .problematic, .system-message')].map(
    e => e.textContent),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
};
"""


def _open(browser, url):
    """What the page holds, what it asked for, and what the browser complained of."""
    browser.get_log("performance"), browser.get_log("browser")  # of the page before
    browser.get(url)
    # lazy images are loaded now
    browser.execute_script(
        "for (const i of document.images) { i.loading = 'eager'; }"
        "return Promise.all([...document.images].map(i => i.decode().catch(() => 0)));"
    )
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = [p["request"]["url"] for p in sent]
    complaints = [
        e["message"] for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")
    ]
    return browser.execute_script(_LOOK), asked, complaints


@pytest.fixture(scope="module")
def pages(browser, address):
    """Every page as the browser sees it."""
    return {page: _open(browser, f"{address}/{page}") for page in PAGES}


@of_site
def test_the_site_has_the_pages_that_it_promises():
    for name in ("index", "start", "beliefs/laplace", "rules/thompson", "values/effects",
                 "notation", "sharp_bits", "evidence", "guides/language"):  # fmt: skip
        assert f"{name}.html" in PAGES
    tutorials = Path(__file__).resolve().parents[1] / "tutorials"
    for script in tutorials.glob("*.py"):
        assert f"tutorials/{script.stem}.html" in PAGES


@of_site
def test_every_page_opens_without_complaint(pages):
    assert {page: c for page, (_, _, c) in pages.items() if c} == {}
    for page, (seen, _, _) in pages.items():
        assert seen["title"], page
        assert seen["headings"] == 1 or page in ("genindex.html", "search.html"), page
        assert seen["errors"] == [], page
        assert seen["unreadable"] == 0, page
        assert seen["wide"] <= 0, f"{page} scrolls sideways"


@of_site
def test_images_are_there_and_described(pages):
    assert {p: s["blank"] for p, (s, _, _) in pages.items() if s["blank"]} == {}
    assert {p: s["silent"] for p, (s, _, _) in pages.items() if s["silent"]} == {}
    for page in PAGES:
        if page.startswith("tutorials/"):
            assert "<img" in Path(SITE, page).read_text(encoding="utf-8"), f"{page}: no plot"


@of_site
def test_nothing_is_asked_of_the_world_outside(pages, address):
    outside = {u for _, asked, _ in pages.values() for u in asked
               if not u.startswith((address, "data:", "blob:"))}  # fmt: skip
    assert outside == set()


@of_site
def test_links_within_the_site_lead_somewhere(pages, address):
    ids = {page: set(seen["ids"]) for page, (seen, _, _) in pages.items()}
    broken = []
    for page, (seen, _, _) in pages.items():
        for link in seen["links"]:
            if not link.startswith(address):
                continue
            target, _, anchor = link[len(address) + 1 :].partition("#")
            target = urllib.parse.unquote(target.split("?")[0]) or "index.html"
            known = ids.get(target, set())
            there = (Path(SITE) / target).is_file()
            if not there or (anchor and known and urllib.parse.unquote(anchor) not in known):
                broken.append((page, link))
    assert broken == []


def test_a_report_opens_without_complaint(browser, tmp_path):
    def model():
        mean = numpyro.sample("mean", dist.Normal(0, 1).expand([3]).to_event(1))
        dp.reward("taken", dist.Normal(mean[dp.action("arm", 3)], 1.0))

    engine = dp.inference.conjugate(model)
    run = dp.experiment.run(
        model, engine, dp.rules.thompson, horizon=20, key=0, replications=3, progress=False
    )
    run.save(tmp_path / "run.nc")
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(tmp_path / "run.nc"), "--out", str(tmp_path / "run.html")])
    assert done.value.code == 0
    page = (tmp_path / "run.html").as_uri()
    seen, asked, complaints = _open(browser, page)
    assert complaints == []
    assert seen["title"]
    assert seen["headings"] == 1
    assert len(browser.find_elements("tag name", "img")) >= 2
    assert seen["blank"] == seen["silent"] == []
    assert seen["wide"] <= 0
    assert {u for u in asked if not u.startswith((page, "data:"))} == set()
    text = browser.find_element("tag name", "body").text
    for expected in ("taken", "arm", "thompson", dp.__version__):
        assert expected in text


def _public():
    """Public functions and classes, by the name they are found under."""
    modules = [dp, *(importlib.import_module(f"decisionppl.{n}") for n in _MODULES)]
    for package in (inference, models):
        modules += [importlib.import_module(f"{package.__name__}.{m.name}")
                    for m in pkgutil.iter_modules(package.__path__)
                    if not m.name.startswith("_")]  # fmt: skip
    for module in modules:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{module.__name__}.{name}", value


@of_site
def test_every_public_name_is_documented_once():
    documented = []
    for page in PAGES:
        text = Path(SITE, page).read_text(encoding="utf-8")
        for path in re.findall(r'<dt class="sig[^>]* id="(decisionppl[\w.]*)"', text):
            module, name = path.rsplit(".", 1)
            with contextlib.suppress(ImportError):  # methods are not in a module
                documented.append(getattr(importlib.import_module(module), name))
    counts = {path: sum(value is d for d in documented) for path, value in _public()
              if value.__module__.startswith("decisionppl")}  # fmt: skip
    assert {path: n for path, n in counts.items() if n != 1} == {}
