"""The leaderboard's page, in a real browser: what it shows, and what a reader can do with it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.analysis.distances import distances
from lm_eval_spt.analysis.html.page import contents, page
from lm_eval_spt.analysis.languages import languages
from lm_eval_spt.analysis.leaderboard import Leaderboard, rank
from lm_eval_spt.analysis.world_map import equal_earth
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.chromium import Browser, chromium
from tests.helpers.results import some_scores, write_prompt, write_results

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
LENGTHS = (1, 4, 16)

SOON = 250
"""Milliseconds. The goal is 100, which a quiet machine keeps; other tests run beside this one."""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Leaderboard:
    """Twenty arms in 205 languages: three curves of prompts, and others, one of them with a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    places: list[tuple[str | None, Path]] = []

    def add(name: str, mean: float, **results: Any) -> None:
        number = len(places)
        places.append((name, write_results(folder / str(number), some_scores(mean, seed=number), **results)))

    for offset, kind in enumerate(("none", "mlp", "residual")):
        for length in LENGTHS:
            file = folder / f"{kind}{length}.safetensors"
            prompt = write_prompt(file, length, seed=offset, reparameterization=kind)
            add(f"{kind} {length}", 0.4 + offset / 20 + length / 100, prompt=prompt)
    second_seed = write_prompt(folder / "second_seed.safetensors", 16, seed=9, reparameterization="residual")
    add("residual 16", 0.6, prompt=second_seed)
    for number in range(10):
        add(f"other {number}", 0.3, base_model=f"org/bloom-{number}")
    add(HOSTILE, 0.2, base_model=HOSTILE)
    arms, left_out = read_arms(places)
    assert len(arms) == 20 and not left_out
    return rank(arms, "eng_Latn", notices=[f"left out: {HOSTILE}"])


@pytest.fixture(scope="module")
def file(board: Leaderboard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "leaderboard.html"
    path.write_text(page(board), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("no Chromium or Chrome is installed (Debian: apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser, file: Path) -> Iterator[Browser]:
    """The page, freshly opened; afterwards the console must be clean and nothing may have been fetched."""
    one_browser.open(file)
    settle(one_browser)
    yield one_browser
    assert one_browser.problems == []
    assert [url for url in one_browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def settle(browser: Browser) -> None:
    """Wait for what the page draws only after a pause: the lower rows of tables, and charts."""
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 120)).then(() => drawn)")


def column(browser: Browser, table: str, number: int) -> list[str]:
    """The texts of a table's column, from the top."""
    settle(browser)
    return browser.evaluate(
        f"[...document.querySelectorAll('#{table} tbody tr')].map(row => row.children[{number}].textContent)"
    )


def choose(browser: Browser, control: str, value: str) -> None:
    """Set a control as a reader would."""
    browser.evaluate(
        f"(control => {{ control.value = {json.dumps(value)};"
        "['input', 'change'].forEach(kind => control.dispatchEvent(new Event(kind, {bubbles: true}))); })"
        f"(document.getElementById({json.dumps(control)}))"
    )
    settle(browser)


def focus(browser: Browser, selector: str) -> None:
    """Go to an element with the Tab key alone."""
    browser.evaluate("document.activeElement.blur()")
    for _ in range(80):
        browser.press("Tab")
        if browser.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
            return
    raise AssertionError(f"{selector} can not be reached with the keyboard")


# -- without a browser -------------------------------------------------------------------------------------------------


def test_the_page_is_small_and_the_same_every_time(board: Leaderboard, file: Path) -> None:
    assert file.stat().st_size < 2_000_000
    assert page(board) == file.read_text(encoding="utf-8")


def test_nothing_in_the_page_points_elsewhere_but_the_links_of_its_footer(file: Path) -> None:
    own = re.sub(r"<script>.*?</script>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"(?:src|href)=\"([^\"]*)", own) == [
        "data:,",
        "https://github.com/d3/d3",
        "https://github.com/observablehq/plot",
        "https://www.naturalearthdata.com",
        "https://glottolog.org",
    ]


def test_the_numbers_survive_in_the_page(board: Leaderboard, file: Path) -> None:
    text = re.search(r'<script id="board" type="application/json">(.*?)</script>', file.read_text(encoding="utf-8"))
    assert text is not None
    assert json.loads(text[1]) == json.loads(json.dumps(contents(board)))
    assert json.loads(text[1])["notices"][0] == f"left out: {HOSTILE}"
    targets = [language["code"] for language in json.loads(text[1])["languages"] if language["target"]]
    assert targets == board.targets


# -- in the browser ----------------------------------------------------------------------------------------------------


def test_text_from_results_stays_text(browser: Browser) -> None:
    assert HOSTILE in browser.evaluate("document.getElementById('notices').textContent")
    assert HOSTILE in column(browser, "ranking", 0)
    assert browser.evaluate("typeof window.hacked") == "undefined"
    assert browser.evaluate("document.querySelectorAll('img').length") == 0


def test_the_ranking_is_what_was_computed(browser: Browser, board: Leaderboard) -> None:
    assert column(browser, "ranking", 0) == [arm.name for arm in board.arms]
    standings = board.standings["acc"]
    assert [float(text) for text in column(browser, "ranking", 2)] == pytest.approx(
        [100 * standing.mean for standing in standings], abs=0.051
    )
    first, last = standings[0].rank
    assert column(browser, "ranking", 1)[0] == (f"{first}–{last}" if first != last else str(first))


def test_tables_are_sorted_with_the_keyboard(browser: Browser) -> None:
    focus(browser, "#languages th:nth-child(3) button")
    browser.press("Enter")
    families = column(browser, "languages", 2)
    assert families == sorted(families, key=str.casefold) and len(families) == 205
    header = "document.querySelector('#languages th:nth-child(3)').getAttribute('aria-sort')"
    assert browser.evaluate(header) == "ascending"
    browser.press("Enter")
    assert column(browser, "languages", 2)[0] == families[-1]
    assert browser.evaluate(header) == "descending"
    assert browser.evaluate("document.activeElement.matches('#languages th:nth-child(3) button')")


def test_numbers_are_sorted_as_numbers(browser: Browser) -> None:
    browser.evaluate("document.querySelector('#ranking th:nth-child(8) button').click()")
    assert browser.evaluate("document.querySelector('#ranking th:nth-child(8) button').textContent") == "Parameters"
    tuned = [text.replace(",", "") for text in column(browser, "ranking", 7)]
    numbers = [int(text) for text in tuned if text != "–"]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] == 8 * max(LENGTHS)


def test_languages_are_filtered(browser: Browser, board: Leaderboard) -> None:
    choose(browser, "family", "Turkic")
    turkic = {code for code, language in languages().items() if language.family == "Turkic"}
    assert set(column(browser, "languages", 1)) == turkic
    scores = board.arms[0].scores("acc")
    total = browser.evaluate("document.querySelector('#languages tfoot').children[0].children[6].textContent")
    assert float(total) == pytest.approx(100 * np.mean([scores[code].value for code in turkic]), abs=0.051)

    choose(browser, "script", "Cyrillic")
    cyrillic = {code for code in turkic if code.endswith("Cyrl")}
    assert set(column(browser, "languages", 1)) == cyrillic
    assert heat_colors(browser, [(0, 0)]) != heat_colors(browser, [(0, len(cyrillic))]) == [(0, 0, 0)]

    choose(browser, "search", "KAZ")
    assert column(browser, "languages", 1) == ["kaz_Cyrl"]
    choose(browser, "search", "no such language")
    assert browser.evaluate("document.getElementById('shown').textContent") == "0 of 205 languages shown, 20 of 20 arms"
    browser.evaluate("document.querySelector('#filters [type=reset]').click()")
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 50))")  # the fields have their values after the event
    assert len(column(browser, "languages", 1)) == 205


def test_seen_languages_are_those_of_the_table(browser: Browser) -> None:
    choose(browser, "seen", "yes")
    assert set(column(browser, "languages", 1)) == {
        code for code, language in languages().items() if "bloom" in language.seen_by
    }


def test_the_other_metric_is_shown_everywhere(browser: Browser, board: Leaderboard) -> None:
    choose(browser, "metric", "macro_f1")
    best = board.standings["macro_f1"][0]
    assert float(column(browser, "ranking", 2)[0]) == pytest.approx(100 * best.mean, abs=0.051)
    expected = 100 * board.arms[0].scores("macro_f1")[sorted(languages(), key=lambda c: languages()[c].name)[0]].value
    assert float(column(browser, "languages", 6)[0]) == pytest.approx(expected, abs=0.051)
    assert "macro-F1" in browser.evaluate("document.getElementById('scatter').textContent")


def heat_colors(browser: Browser, cells: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """The colours of the heat map in cells (arm, language), as red, green and blue; black where nothing is drawn."""
    script = (
        "(cells => { const canvas = document.querySelector('#heat canvas');"
        "const copy = new OffscreenCanvas(canvas.width, canvas.height);"
        "const pixels = copy.getContext('2d', { willReadFrequently: true });"
        "pixels.drawImage(canvas, 0, 0);"
        "const left = Math.min(150, 0.3 * element('heat').clientWidth);"
        "const cell = (element('heat').clientWidth - left - 60) / 20;"
        "return cells.map(([i, j]) => [...pixels.getImageData("
        "left + cell * i + 2, 100 + 16 * j + 2, 1, 1).data].slice(0, 3)); })"
    )
    return [tuple(color) for color in browser.evaluate(f"{script}({json.dumps(cells)})")]


def test_the_heat_map_is_as_wide_as_the_page_and_has_the_colour_of_every_score(
    browser: Browser, board: Leaderboard
) -> None:
    choose(browser, "heat-order", "name")
    width = browser.evaluate("[document.querySelector('#heat canvas').offsetWidth, element('heat').clientWidth]")
    assert width[0] == pytest.approx(width[1], abs=1)
    codes = sorted(languages(), key=lambda code: languages()[code].name)
    scores = np.array([[arm.scores("acc")[code].value for code in codes] for arm in board.arms])
    shares = (scores - scores.min()) / (scores.max() - scores.min())
    cells = [(arm, language) for arm in range(20) for language in range(0, 205, 9)]
    expected = (matplotlib.colormaps["viridis"]([shares[cell] for cell in cells])[:, :3] * 255).round()
    assert np.abs(np.array(heat_colors(browser, cells)) - expected).max() <= 6  # 256 shades


def test_the_cell_under_the_mouse_is_named(browser: Browser, board: Leaderboard) -> None:
    choose(browser, "heat-order", "name")
    place = "document.querySelector('#heat canvas')"
    browser.evaluate(f"{place}.scrollIntoView({{block: 'start'}})")
    x, y = browser.evaluate(f"(box => [box.x, box.y])({place}.getBoundingClientRect())")
    browser.move(x + 150 + 5, y + 100 + 16 * 2 + 5)
    code = sorted(languages(), key=lambda code: languages()[code].name)[2]
    score = f"{100 * board.arms[0].scores('acc')[code].value:.1f}"
    tip = browser.evaluate("document.querySelector('#heat .tip').innerText")
    assert tip.splitlines() == [f"{languages()[code].name} ({code})", board.arms[0].name, score]


def test_charts_show_every_number(browser: Browser) -> None:
    count = "document.querySelectorAll('#{} [aria-label=\"{}\"] {}').length"
    missing = int(
        browser.evaluate("document.getElementById('scatter-note').textContent.match(/(\\d+) of the/)?.[1] ?? '0'")
    )
    assert browser.evaluate(count.format("scatter", "dot", "path")) == 3 * (205 - missing)
    assert browser.evaluate(count.format("pair", "bar", "rect")) == 205
    assert browser.evaluate(count.format("intervals", "dot", "circle")) == 20
    assert browser.evaluate(count.format("one-chart", "dot", "circle")) == 20
    assert browser.evaluate(count.format("length", "line", "path")) == 3
    assert browser.evaluate(count.format("length", "dot", "path")) == 3 * len(LENGTHS)
    assert browser.evaluate(count.format("reparameterization", "dot", "path")) >= 3 * len(LENGTHS)


def test_a_tooltip_names_the_point_under_the_mouse(browser: Browser, board: Leaderboard) -> None:
    point = (
        "(box => [box.x + box.width / 2, box.y + box.height / 2])"
        "((dot => (dot.scrollIntoView({block: 'center'}), dot.getBoundingClientRect()))"
        "(document.querySelector('#scatter [aria-label=\"dot\"] path')))"
    )
    browser.move(*browser.evaluate(point))
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 100))")
    tip = browser.evaluate("document.querySelector('#scatter [aria-label=\"tip\"]').textContent")
    assert re.search(r"\(\w{3}_\w{4}\).* at distance \d\.\d\d", tip, re.DOTALL), tip


def test_one_language_has_all_arms_with_intervals_and_its_nearest_languages(
    browser: Browser, board: Leaderboard
) -> None:
    german = sorted(languages()).index("deu_Latn")
    choose(browser, "one", str(german))
    shown = dict(zip(column(browser, "one-table", 0), column(browser, "one-table", 2), strict=True))
    assert shown.keys() == {arm.name for arm in board.arms}
    for arm, standing in zip(board.arms, board.standings["acc"], strict=True):
        low, high = (100 * min(max(end, 0), 1) for end in standing.intervals["deu_Latn"])
        assert [float(end) for end in shown[arm.name].split(" – ")] == pytest.approx([low, high], abs=0.06)
        if len(arm.runs) == 1 and not arm.uses_prompt:  # nothing was learned and no samples are there
            assert high - low == pytest.approx(100 * 2 * 1.96 * 0.03, abs=0.01)
    both_runs = next(arm for arm in board.arms if len(arm.runs) == 2)
    row = column(browser, "one-table", 0).index(both_runs.name)
    assert column(browser, "one-table", 3)[row] == ", ".join(
        f"{100 * run.scores['acc']['deu_Latn'].value:.1f}" for run in both_runs.runs
    )

    choose(browser, "near-by", "geographic")
    assert column(browser, "near", 1)[0] == "deu_Latn"
    far = list(distances("deu_Latn", [code for code in languages() if code != "deu_Latn"]).values["geographic"].items())
    expected = sorted(far, key=lambda item: item[1])[:10]
    assert set(column(browser, "near", 1)[1:]) == {code for code, _ in expected}
    assert [float(text) for text in column(browser, "near", 4)[1:]] == pytest.approx(
        [distance for _, distance in expected], abs=0.006
    )
    first = board.arms[0].scores("acc")
    assert [float(text) for text in column(browser, "near", 5)] == pytest.approx(
        [100 * first[code].value for code in column(browser, "near", 1)], abs=0.051
    )


def test_arms_are_searched_by_name_and_description(browser: Browser) -> None:
    choose(browser, "arm-search", "MLP rep")
    assert len(column(browser, "one-table", 0)) == len(LENGTHS)
    heads = browser.evaluate("[...document.querySelectorAll('#languages thead button')].map(head => head.textContent)")
    assert sorted(heads[6:]) == ["mlp 1", "mlp 16", "mlp 4"]
    assert browser.evaluate("element('shown').textContent") == "205 of 205 languages shown, 3 of 20 arms"
    choose(browser, "arm-search", "no such arm")
    assert column(browser, "one-table", 0) == []


def test_what_is_the_same_for_all_arms_stands_above_the_ranking(browser: Browser, board: Leaderboard) -> None:
    common = browser.evaluate("element('ranking-common').textContent")
    assert "trained on sib200_eng_Latn, 8 shots" in common and "harness 0.4.13" in common
    heads = browser.evaluate("[...document.querySelectorAll('#ranking thead th')].map(head => head.innerText)")
    assert heads[3].splitlines()[-1] == "over seeds and documents"  # what the interval contains
    assert not {"Tasks", "Harness"} & {*heads}
    descriptions = dict(zip(column(browser, "ranking", 0), column(browser, "ranking", 8), strict=True))
    assert descriptions["mlp 4"] == "suffix, 4 tokens, mlp reparameterization"
    assert descriptions["none 1"] == "suffix, 1 token"
    assert descriptions["other 0"] == "no prompt"


def test_two_arms_are_compared(browser: Browser, board: Leaderboard) -> None:
    choose(browser, "pair-first", "mlp 4")
    choose(browser, "pair-second", "none 4")
    by_name = {arm.name: arm.scores("acc") for arm in board.arms}
    differences = np.array([by_name["mlp 4"][code].value - by_name["none 4"][code].value for code in languages()])
    text = browser.evaluate("document.getElementById('pair-result').textContent")
    mean, error, higher, lower = re.findall(r"[\d.]+", text.replace("(standard error over languages", ""))[:4]
    assert float(mean) == pytest.approx(100 * differences.mean(), abs=0.06)
    assert float(error) == pytest.approx(100 * differences.std(ddof=1) / np.sqrt(205), abs=0.06)
    assert (int(higher), int(lower)) == ((differences > 0).sum(), (differences < 0).sum())


def test_the_map_shows_scores_and_gains_of_the_languages_shown(browser: Browser, board: Leaderboard) -> None:
    dots = "[...document.querySelectorAll('#map [aria-label=\"dot\"] circle')]"
    assert browser.evaluate(f"{dots}.length") == len(languages())
    choose(browser, "family", "Turkic")
    turkic = sorted(code for code, language in languages().items() if language.family == "Turkic")
    assert browser.evaluate(f"{dots}.length") == len(turkic)
    assert "accuracy, %" in browser.evaluate("document.getElementById('map-legend').textContent")
    choose(browser, "map-arm", "mlp 4")
    choose(browser, "map-minus", "none 4")
    assert "difference in accuracy, points" in browser.evaluate("document.getElementById('map-legend').textContent")
    by_name = {arm.name: arm.scores("acc") for arm in board.arms}
    gains = [by_name["mlp 4"][code].value - by_name["none 4"][code].value for code in turkic]
    reds_and_blues = browser.evaluate(
        f"{dots}.map(dot => d3.rgb(dot.getAttribute('fill'))).map(color => Math.sign(color.b - color.r))"
    )
    assert sorted(reds_and_blues) == sorted(np.sign(gains))
    assert browser.evaluate("document.getElementById('map-note').textContent") == ""


def test_maps_in_print_and_on_the_page_have_one_projection(browser: Browser) -> None:
    places = [(0.0, 0.0), (52.0, 13.4), (-38.0, 176.5), (80.0, -170.0), (-58.0, -179.0)]
    for latitude, longitude in places:
        x, y = browser.evaluate(f"d3.geoEqualEarth().scale(1).translate([0, 0])([{longitude}, {latitude}])")
        assert equal_earth(np.array(latitude), np.array(longitude)) == pytest.approx((x, -y), abs=1e-6)


def test_every_score_can_be_downloaded(browser: Browser, board: Leaderboard, tmp_path: Path) -> None:
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    focus(browser, "#all-csv")
    browser.press("Enter")
    file = tmp_path / "scores.csv"
    for _ in range(100):
        if file.exists():
            break
        browser.evaluate("new Promise(resolve => setTimeout(resolve, 50))")
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"))))
    assert len(rows) == (20 + 2) * 205 * 2  # the two runs of one arm, too
    for arm in board.arms:
        expected = {("mean", code): score.value for code, score in arm.scores("acc").items()}
        for run in arm.runs if len(arm.runs) > 1 else ():
            expected |= {(run.prompt_name, code): score.value for code, score in run.scores["acc"].items()}
        arm_rows = [row for row in rows if (row["Arm"], row["Metric"]) == (arm.name, "acc")]
        saved = {(row["Run"], row["Code"]): float(row["Score"]) for row in arm_rows}
        assert saved == pytest.approx(expected, abs=5.1e-5)


def test_a_spreadsheet_runs_no_formula_from_a_csv_file(browser: Browser) -> None:
    text = browser.evaluate("asCsv([{title: 'a', value: d => d}], ['=1+1', '@x', 'a \"b\", c', -1, null])")
    assert list(csv.reader(io.StringIO(text))) == [["a"], ["'=1+1"], ["'@x"], ['a "b", c'], ["-1"], []]


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(browser: Browser, file: Path, dark: bool) -> None:
    browser.open(file, dark=dark)

    def luminance(what: str) -> float:
        """Of WCAG 2: 0 for black, 1 for white."""
        color = browser.evaluate(f"getComputedStyle(document.body).{what}")
        shares = np.array([int(part) / 255 for part in re.findall(r"\d+", color)[:3]])
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    background, text = luminance("backgroundColor"), luminance("color")
    assert (background < text) == dark
    assert (max(background, text) + 0.05) / (min(background, text) + 0.05) > 7


def test_the_ranking_fits_into_1200_pixels_whatever_it_holds(one_browser: Browser, tmp_path: Path) -> None:
    long = "an-organization-with-a-long-name/and-a-model-with-a-long-name"
    for number in range(4):
        prompt = write_prompt(tmp_path / f"{number}.safetensors", number + 1, reparameterization="residual", lr=number)
        loaded = SoftPrompt.load(prompt)
        more = {"tuned_parameters": 8_030_261_248, "tasks": [f"{'x' * 60}_{number}"], "training_documents": 10**7}
        SoftPrompt(loaded.vectors, loaded.metadata | more | {"seed": number}).save(prompt)
        scores = some_scores(0.5, count=20, seed=number)
        file = write_results(tmp_path / str(number), scores, prompt=prompt, base_model=f"{long}-{number}")
        file.write_text(file.read_text().replace('"0.4.13"', f'"0.4.13.dev{number}"'))
    places = [
        ("A name of an arm that is rather long " + "x" * 15 * number, tmp_path / str(number)) for number in range(4)
    ]
    arms, _ = read_arms(places)
    (tmp_path / "page.html").write_text(page(rank(arms, "eng_Latn")), encoding="utf-8")
    one_browser.open(tmp_path / "page.html", width=1200)
    assert one_browser.evaluate("element('ranking').scrollWidth <= element('ranking').clientWidth")
    cut = "[...document.querySelectorAll('#ranking :is(th, td)')].filter(one => one.scrollWidth > one.clientWidth + 1)"
    assert one_browser.evaluate(f"{cut}.length") == 0
    tallest = "Math.max(...[...document.querySelectorAll('#ranking thead th')].map(head => head.clientHeight))"
    assert one_browser.evaluate(tallest) < 72  # three lines


def test_200_runs_are_searched_and_sorted_quickly(one_browser: Browser, tmp_path: Path) -> None:
    prompt = write_prompt(tmp_path / "p.safetensors")
    places: list[tuple[str | None, Path]] = [
        (f"arm {n}", write_results(tmp_path / str(n), some_scores(0.3 + n / 1000, seed=n), prompt=prompt, n=n))
        for n in range(200)
    ]
    arms, _ = read_arms(places)
    (tmp_path / "page.html").write_text(page(rank(arms, "eng_Latn")), encoding="utf-8")
    one_browser.open(tmp_path / "page.html")
    painted = (
        "new Promise(resolve => requestAnimationFrame(() => { const { port1, port2 } = new MessageChannel();"
        "port1.onmessage = resolve; port2.postMessage(0); }))"
    )

    def milliseconds(action: str) -> float:
        """From the action to the end of the next frame; the best of three, as other programs are running."""
        times = []
        for _ in range(3):
            settle(one_browser)
            script = f"(async () => {{ const start = performance.now(); {action}; await {painted};"
            times.append(one_browser.evaluate(script + "return performance.now() - start; })()"))
        return min(times)

    search = (
        "const field = element('search'); field.value = field.value ? '' : 'a';"
        "field.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert milliseconds(search) < SOON
    for table in ("ranking", "languages", "one-table"):
        assert milliseconds(f"document.querySelector('#{table} thead button').click()") < SOON, table
    assert len(column(one_browser, "ranking", 0)) == 200
    assert one_browser.evaluate("element('shown').textContent").endswith("the best 20 of 200 arms")
    assert one_browser.evaluate("element('notices').textContent.length") < 1000
    assert one_browser.problems == []


def axe() -> Path:
    """The script of axe-core (``npm install axe-core``); skips the test without it."""
    folders = [Path.cwd(), Path.home(), *map(Path, os.environ.get("NODE_PATH", "").split(os.pathsep))]
    places = [folder / inside for folder in folders for inside in ("node_modules/axe-core", "axe-core")]
    found = next((script for place in places if (script := place / "axe.min.js").is_file()), None)
    return found or pytest.skip("axe-core is not installed (npm install axe-core, or its folder's parent in NODE_PATH)")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_axe_finds_nothing_serious(one_browser: Browser, file: Path, width: int, dark: bool) -> None:
    one_browser.open(file, width=width, dark=dark)
    settle(one_browser)
    one_browser.evaluate(axe().read_text(encoding="utf-8") + ";0")
    results = one_browser.evaluate("axe.run()")
    assert len(results["passes"]) > 20  # it has looked
    found = [(one["id"], one["nodes"][0]["html"]) for one in results["violations"]]
    assert found == []


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, file: Path) -> None:
    browser.open(file, width=400)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    sizes = (
        "[...document.querySelectorAll('td, th, p, label')].map(text => parseFloat(getComputedStyle(text).fontSize))"
    )
    assert min(browser.evaluate(sizes)) >= 12


def test_without_prompts_there_are_no_curves_and_the_page_says_why(one_browser: Browser, tmp_path: Path) -> None:
    write_results(tmp_path / "a", {"eng_Latn": 0.5, "deu_Latn": 0.4})
    arms, _ = read_arms([("only", tmp_path / "a")])
    (tmp_path / "page.html").write_text(page(rank(arms, "eng_Latn")), encoding="utf-8")
    one_browser.open(tmp_path / "page.html")
    assert "differ in nothing but their prompt length" in one_browser.evaluate(
        "document.getElementById('length').textContent"
    )
    assert one_browser.problems == []
