"""The HTML page in a real browser: drawn, legible, within the screen, silent, offline, and safe from its own data."""

from __future__ import annotations

import copy
import json
import os
import shutil
import types
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedl import comparison, picking, plugins
from edgedl.core import Exhibit, MissingPackage
from edgedl.report import compared, exhibits, labels, words
from edgedl.report.page import write_page
from tests import sample_report
from tests.sample_report import METRIC

HOSTILE = """</script><script>alert(1)</script>"'><img src=x onerror=alert(1)><b>{{ 7 * 7 }}%{x}&lt;""" + "x" * 80
STRUCTURE = ("status", "ship", "unit", "slower", "verdict", "sha256")
"""Keys whose values are edgedl's own words."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window; a machine without it skips these tests, but CI must have it."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    binary = next((found for name in names if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        lack = (
            f"no {'Chromium' if binary is None else 'chromedriver'} found: the HTML page cannot be tried in a browser"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lack)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "disable-quic",
                     "disable-background-networking", "disable-component-update", "disable-sync",
                     f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, Service(driver)) as started:
        yield started


@pytest.fixture
def shown(browser: Any) -> Callable[..., Any]:
    """Opens a page at a width, light or dark, and forgets what the browser logged before."""

    def show(page: Path, width: int = 1280, scheme: str = "light") -> Any:
        prefer(browser, scheme)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get("about:blank")
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(page.as_uri())
        settle(browser)
        return browser

    return show


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "2026-11-20T14-15-00"
    folder.mkdir()
    sample_report.write_beside(folder)
    return write_page(sample_report.sample_report(), folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_is_drawn_within_the_screen_in_silence(shown: Any, page: Path, width: int, scheme: str) -> None:
    browser = shown(page, width, scheme)
    assert_silent_and_within_the_screen(browser, page)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => {"
        " const r = p.querySelector('svg.main-svg').getBoundingClientRect(); return [r.width, r.height] })"
    )
    # The trade-off, two times two lists of operators, loss and score.
    assert len(sizes) == 7
    assert all(across > 200 and down > 100 for across, down in sizes)
    ink, tick = browser.execute_script(
        "const probe = document.querySelector('.xtick text');"
        " return [getComputedStyle(document.body).color, getComputedStyle(probe).fill]"
    )
    assert tick == ink


def test_says_every_verdict_status_and_reason(shown: Any, page: Path) -> None:
    said = shown(page).find_element("tag name", "body").text
    for expected in (
        "20 November 2026, 14:15",
        "Of 4 targets, 1 ships compressed, 1 keeps float, 1 is to be judged on its device, 1 has nothing to ship.",
        "Ship compressed", "2.83× faster", "95% interval 2.80 to 2.86", "1.69 MB → 432.5 kB", "0.28 points worse",
        "Keep float", "0.78×, slower", "Judge on the device", "Nothing to ship",
        "Refused: it is slower", "Built: it cannot run here", "Failed: it refuses node_pool",
        "bit for bit", "They first part at layer features.3.conv", "weights taken from runs/before",
        "No profile of tensorrt: nothing ran here.", "affine scheme", 'task = { use = "digits" }', "42 °C",
    ):  # fmt: skip
        assert expected in said


@pytest.mark.parametrize("width", [1280, 400])
def test_names_in_the_trade_off_cover_nothing(shown: Any, tmp_path: Path, width: int) -> None:
    report = sample_report.sample_report()
    del report["rows"][4:6]
    for row in report["rows"]:
        row |= {"score": 0.975, "status": "ok", "size_bytes": row["size_bytes"] or 450_000}
        row["latency_ms"] = row["latency_ms"] or report["rows"][0]["latency_ms"]
    browser = shown(write_page(report, tmp_path), width)
    boxes, names = browser.execute_script(
        "const plot = document.querySelector('[data-figure=trade-off]');"
        " const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] };"
        " const names = [...plot.querySelectorAll('.annotation-text-g')];"
        " const all = [...names, ...plot.querySelectorAll('path.point')];"
        " return [all.map(box), names.map(n => n.textContent)]"
    )
    assert len(names) == 6 + 1
    assert len(boxes) == len(names) + 2 * 6
    for index in range(len(names)):
        for other in boxes[index + 1 :]:
            left, top, right, bottom = boxes[index]
            assert not (left < other[2] and other[0] < right and top < other[3] and other[1] < bottom), names[index]


def test_gives_up_names_that_find_no_place() -> None:
    spots = [labels.Spot(across=0.5, down=100, radius=10, text="a name") for _ in range(40)]
    assert labels.place(spots[:3], widths=(255, 1010), height=300, blocked=[]) is not None
    assert labels.place(spots, widths=(255, 1010), height=300, blocked=[]) is None


def test_follows_the_reader_from_light_to_dark_and_onto_paper(shown: Any, page: Path) -> None:
    browser = shown(page)
    probe = (
        "const plot = document.querySelector('[data-figure=trade-off]');"
        " return [getComputedStyle(plot.querySelector('.xtick text')).fill, plot.querySelector('svg').clientWidth]"
    )
    light, width = browser.execute_script(probe)
    prefer(browser, "dark")
    settle(browser)
    assert browser.execute_script(probe)[0] != light
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    settle(browser)
    ink, on_paper = browser.execute_script(probe)
    assert ink == light
    assert on_paper < 700
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    settle(browser)
    assert browser.execute_script(probe)[1] == width


@pytest.mark.parametrize("width", [1280, 400])
def test_shows_hostile_strings_as_text(shown: Any, tmp_path: Path, width: int) -> None:
    sample_report.write_beside(tmp_path)
    (tmp_path / "recipe.toml").write_text(HOSTILE)
    calibration = tmp_path / "quantization" / "affine.json"
    calibration.write_text(json.dumps(hostile(json.loads(calibration.read_text()))))
    page = write_page(hostile(sample_report.sample_report()), tmp_path)
    browser = shown(page, width)
    assert_silent_and_within_the_screen(browser, page)
    assert browser.execute_script("return document.querySelectorAll('main img, main b, svg b, svg a').length") == 0
    assert browser.execute_script("return document.querySelectorAll('script').length") == 3
    assert browser.execute_script("return document.querySelector('h1').textContent") == "cnn-int8" + HOSTILE
    assert browser.execute_script("return document.querySelector('pre').textContent") == HOSTILE
    drawn = browser.execute_script("return document.querySelector('[data-figure=trade-off]').textContent")
    assert f"accuracy{HOSTILE} (higher is better)" in drawn


def test_a_float_run_that_ran_nowhere_needs_no_plot(shown: Any, tmp_path: Path) -> None:
    report = sample_report.sample_report()
    report["rows"] = [row for row in report["rows"] if row["target"] == "tensorrt" and row["variant"] == "float"]
    report["ladder"] = report["ladder"][4:5]
    report["verdicts"] = [report["verdicts"][2]]
    report["steps"] = []
    browser = shown(write_page(report, tmp_path))
    assert_silent_and_within_the_screen(browser, tmp_path / "report.html")
    assert "No file of this run could run here" in browser.find_element("tag name", "main").text
    assert not browser.find_elements("css selector", ".plot, pre")


def test_a_metric_of_another_kind_and_a_target_named_twice(tmp_path: Path) -> None:
    report = sample_report.sample_report()
    report["metric"] = {"name": "error", "unit": "dB", "higher_is_better": False}
    for table in ("rows", "ladder", "verdicts"):
        report[table] += copy.deepcopy([entry for entry in report[table] if entry["target"] == "tflite"])
    report["rows"][-1]["latency_ms"] |= {"median": 9.5, "ci95": [9.0, 10.0]}
    text = write_page(report, tmp_path).read_text(encoding="utf-8")
    assert "tflite 1" in text
    assert "tflite 2" in text
    assert "0.975 dB" in text
    assert '"type": "log"' in text


def test_further_figures_stand_beside_the_score(shown: Any, tmp_path: Path) -> None:
    report = sample_report.sample_report()
    del report["rows"][2]["figures"]  # as in runs of before there were any
    report["rows"][0]["figures"], report["rows"][1]["figures"] = {"R²": 0.4512, "F1": None}, {"R²": 0.4498, "F1": None}
    browser = shown(write_page(report, tmp_path), 400)
    assert_silent_and_within_the_screen(browser, tmp_path / "report.html")
    card, *others = browser.find_elements("css selector", ".card")
    assert "R² 0.4512 → 0.4498\nF1 – → –" in card.text
    assert not any("R²" in other.text for other in others)
    lines = browser.find_elements("css selector", ".rows tbody tr")
    assert ["R² 0.4512" in line.text for line in lines[:2]] == [True, False]
    assert "R² 0.4498" in lines[1].text


@pytest.mark.parametrize("width", [1280, 400])
def test_shows_samples_of_the_deployed_files_within_the_screen(shown: Any, tmp_path: Path, width: int) -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    panels = dict.fromkeys(("input", "truth", "float", "compressed"), picture)
    found = [Exhibit(f"sample {HOSTILE}", panels), Exhibit("a text", {"input": 40 * "some words ", HOSTILE: HOSTILE})]
    task = types.SimpleNamespace(arrays=lambda split: {}, exhibits=lambda answers, batch: found)
    assert exhibits.save(types.SimpleNamespace(folder=tmp_path), "tflite", task, {}) is None  # type: ignore[arg-type]
    page = write_page(sample_report.sample_report() | {"warnings": [HOSTILE]}, tmp_path)
    browser = shown(page, width, "dark")
    assert_silent_and_within_the_screen(browser, page)
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.exhibit img')]"
        ".map(i => [i.complete, i.naturalWidth, i.width, i.height])"
    )
    assert len(sizes) == 4
    assert all(
        complete and natural == 4 and 90 < across <= 240 and across == down for complete, natural, across, down in sizes
    )
    said = browser.find_element("css selector", ".exhibits").text
    assert "some words some words" in said
    assert said.lower().count("<img src=x") == 3
    assert HOSTILE in browser.find_element("css selector", ".warning").text
    assert browser.execute_script("return document.querySelectorAll('main b').length") == 0


@pytest.fixture
def side_by_side(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the page of three runs, two of a task on two devices and one of another, whose names end alike."""

    def write(end: str = "") -> Path:
        for name, task, device in (("cnn", "digits", "Orin"), ("mlp", "digits", "a phone"), ("lstm", "text", "Orin")):
            report = hostile(sample_report.sample_report(), end=end)
            report["recipe"] |= {"name": name + end, "task": {"use": task}}
            for row in report["rows"]:
                row["device"] = device + end
            (tmp_path / name).mkdir()
            (tmp_path / name / "report.json").write_text(json.dumps(report))
        files = comparison.read([str(tmp_path / name) for name in ("cnn", "mlp", "lstm")], tmp_path)
        groups = comparison.groups(files)
        limits = picking.parse("latency<1ms")
        page = tmp_path / "page.html"
        compared.write_page(groups, [picking.pick(group, limits) for group in groups if group.device], page)
        return page

    return write


SHOWN = (
    "const seen = selector => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility());"
    " return [seen('main tr[data-file]').length, seen('main [data-group]').length,"
    " seen('[data-figure] path.point').length, seen('.annotation-text-g').map(e => e.textContent)]"
)


@pytest.mark.parametrize("width", [1280, 400])
def test_runs_side_by_side_are_drawn_within_the_screen_and_as_text(shown: Any, side_by_side: Any, width: int) -> None:
    page = side_by_side(HOSTILE)
    browser = shown(page, width)
    assert_silent_and_within_the_screen(browser, page)
    assert browser.execute_script("return document.querySelectorAll('img, main b, svg b, svg a').length") == 0
    rows, sections, markers, _ = browser.execute_script(SHOWN)
    assert (rows, sections) == (24, 5)  # digits on two devices, text on one, and what each has not run
    assert markers == 2 * 3 * 4  # for each file that ran its marker and its interval
    drawn = browser.execute_script("return document.querySelector('[data-figure=trade-off-0]').textContent")
    assert f"accuracy{HOSTILE} (higher is better)" in drawn
    box = browser.find_element("css selector", "input[data-facet=run]")
    assert box.get_attribute("value") == "cnn" + HOSTILE
    box.click()
    settle(browser)
    assert browser.execute_script(SHOWN)[:3] == [16, 4, 16]


def test_what_is_ticked_off_goes_from_tables_and_plots_and_stays_off_paper(shown: Any, side_by_side: Any) -> None:
    browser = shown(side_by_side())
    everything = browser.execute_script(SHOWN)
    front = {f"{run} {variant}" for run in ("cnn", "mlp", "lstm") for variant in ("float", "compressed")}
    assert set(everything[3]) == front
    assert "ship " in browser.find_element("css selector", ".picked").text

    def tick(facet: str, value: str) -> None:
        browser.find_element("css selector", f"input[data-facet={facet}][value='{value}']").click()
        settle(browser)

    tick("target", "onnxruntime")
    tick("device", "Orin")
    rows, sections, markers, names = browser.execute_script(SHOWN)
    assert (rows, sections, markers) == (6, 2, 4)
    assert set(names) == {"mlp compressed", "mlp float"}
    assert "18 files are left out: Orin, onnxruntime." in browser.find_element("css selector", "header").text
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    settle(browser)
    assert browser.execute_script(SHOWN)[2] == 4
    on_paper = browser.execute_script(
        "return [...document.querySelectorAll('.plot svg')].find(e => e.checkVisibility()).clientWidth"
    )
    assert on_paper < 700
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element("css selector", ".filters").is_displayed()
    assert browser.find_element("css selector", "#left-out").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    tick("target", "onnxruntime")
    tick("device", "Orin")
    assert browser.execute_script(SHOWN) == everything
    assert browser.find_element("css selector", "#left-out").text == ""


def test_leaves_one_whole_file(tmp_path: Path) -> None:
    file = write_page(sample_report.sample_report(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.rstrip().endswith("</html>")
    assert text.count("plotly.js v") == 1


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(plugins, "installed", lambda module: module != package)
    with pytest.raises(MissingPackage, match=rf"{package}.*pip install 'edgedl\[report\]'"):
        write_page(sample_report.sample_report(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("stem.conv1;2", "RESHAPE", "RESHAPE · stem.conv1"),
        ("0;1", "CONV_2D", "CONV_2D · 0"),
        ("relu2;;c2;1", "CONV_2D", "CONV_2D · relu2 + c2"),
        ("flatten;", "FLATTEN", "FLATTEN"),
        ("tfl.quantize", "QUANTIZE", "QUANTIZE"),
        ("serving_default_logits_output", "DEQUANTIZE", "DEQUANTIZE · logits_output"),
        ("node_conv2d_token_15", "QLinearConv", "QLinearConv · conv2d"),
        ("relu_1_nchwc", "Conv", "Conv · relu_1"),
        ("fused node_linear", "FusedGemm", "FusedGemm · linear"),
        ("Transpose_token_24", "Transpose", "Transpose"),
        ("__myl_Move_myl0_0", "Move", "Move"),
        ("", "Layer", "Layer"),
        ("a_very_long_name_of_some_layer", "Conv", "Conv · a_very_long_name_of_so…"),
    ],
)
def test_shortens_names_of_operators(name: str, kind: str, expected: str) -> None:
    assert words.operator_label(name, kind) == expected


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        (0.0, "the same"),
        (0.0042, "0.42 points worse"),
        (-0.01, "1 point better"),
        (1e-6, "less than 0.01 points worse"),
    ],
)
def test_says_a_change_in_words(drop: float, expected: str) -> None:
    assert words.change(drop, METRIC) == expected


def test_never_calls_most_decisions_all() -> None:
    found = {"sqnr_db": 40.0, "same_decision": 0.99996, "max_steps": 1}
    assert words.agreement(found) == "40.0 dB, up to 1 step apart, 99.9% of decisions equal"


def test_names_in_an_array_are_told_apart_from_sizes() -> None:
    part = {"use": "quantize", "method": ["ptq", "dynamic"], "widths": [64, 10], "corrections": [], "lr": 0.1}
    assert words.settings(part) == "method ptq + dynamic, widths 64×10, corrections none, lr 0.1"


def test_reads_the_date_from_the_folder(tmp_path: Path) -> None:
    assert words.date(tmp_path / "2026-11-20T14-15-00-2") == datetime(2026, 11, 20, 14, 15)
    assert words.date(tmp_path / "2026-13-20T14-15-00") is None
    assert words.date(tmp_path / "renamed") is None


def assert_silent_and_within_the_screen(browser: Any, page: Path) -> None:
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Older plotly.js asks the browser for an image that it carries as data: no request leaves the machine for that.
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    wide, window = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= window


def prefer(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def settle(browser: Any) -> None:
    """Waits until all is drawn: plotly finishes its margins some frames later, and answers a new size after 0.1 s."""
    browser.execute_async_script("setTimeout(() => requestAnimationFrame(arguments[0]), 400)")


def hostile(value: Any, key: str = "", end: str = HOSTILE) -> Any:
    """The same report, with markup at the end of every string that is not edgedl's own word."""
    if isinstance(value, dict):
        return {name: hostile(item, name, end) for name, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, end=end) for item in value]
    return value + end if isinstance(value, str) and key not in STRUCTURE else value
