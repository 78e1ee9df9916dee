"""The page in headless Chromium: every control, the state in the link, downloads, and no network request."""

import csv
import io
import json
import re
import shutil
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import studies
from depthcut.record.state import lock_path
from depthcut.report import data, page, plotlyjs, serve, study
from running import run

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><img src=x onerror=window.hacked=1><b>\u202e$x$"
MODELS = ("pico", "phi_2", "qwen3_8b", HOSTILE)
FIGURES = ("curves", "forest", "strips", "maps", "agreement", "pareto", "healing")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Write a real study, two synthetic ones, one with a hostile name, and a point that failed."""
    folder = tmp_path_factory.mktemp("studies")
    outputs = studies.real(folder).parent
    studies.bench("report").make(outputs, 160, steps=120, models=("phi_2", "qwen3_8b"))
    for path in sorted(outputs.glob("made_qwen3_8b/*/record.json"))[-30:]:
        record = json.loads(path.read_text())
        record["config"]["model"]["repo"] = HOSTILE
        studies.changed(path, study="=HYPERLINK(1)", config=record["config"], device=HOSTILE)
    failed = sorted(outputs.glob("made_phi_2/*/record.json"))[0].parent
    (failed / "record.json").unlink()
    (failed / "failure.json").write_text(json.dumps({"format": 1, "reason": f"RuntimeError: {HOSTILE}"}))
    return outputs


@pytest.fixture(scope="module")
def report(outputs):
    path = outputs / "report.html"
    page.write_page(data.page_data(study.read_studies([outputs]), HOSTILE), path)
    return path


class Watched:
    """A page, its network requests and its console errors."""

    def __init__(self, browser, **context):
        self.context = browser.new_context(viewport={"width": 1300, "height": 900}, accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, report, link=""):
        self.page.goto(f"file://{report}{link}" if isinstance(report, Path) else report + link)
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def close(self):
        outside = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))]
        self.context.close()
        assert self.complaints == [] and outside == []


@pytest.fixture
def watched(browser):
    found = Watched(browser)
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared(browser, report):
    found = Watched(browser)
    found.open(report)
    yield found
    found.close()


@pytest.fixture
def opened(shared):
    """Return the report in its initial state; plotly starts once for all tests."""
    shared.page.evaluate("document.activeElement.blur(); location.hash = '#'; scrollTo(0, 0)")
    shared.page.wait_for_selector("#overview:not([hidden])")
    yield shared.page
    assert shared.complaints == []


def drawn(opened, name):
    """Scroll to a figure and wait until it is drawn."""
    figure = opened.locator(f"figure[data-figure={name}]")
    figure.scroll_into_view_if_needed()
    opened.locator(f"figure[data-figure={name}][data-drawn]").wait_for()
    return figure


def shown_curves(opened) -> int:
    return int(re.match(r"(\d+) of", opened.inner_text("#shown"))[1])


def test_every_figure_is_drawn(opened):
    for name in FIGURES:
        assert drawn(opened, name).locator(".plot svg path").count() + drawn(opened, name).locator("image").count() > 3
    assert "failed" in opened.inner_text("#words")


def test_plotly_registers_only_the_traces_in_use(opened):
    parts = opened.evaluate("Object.keys(Plotly.PlotSchema.get().traces)")
    assert {"scatter", *plotlyjs.TRACE_KINDS} <= set(parts) and len(parts) < 10
    for name in FIGURES:
        drawn(opened, name)
        kinds = "document.querySelector('figure[data-figure=%s] .plot').%s.map((each) => each.type)"
        asked = opened.evaluate(kinds % (name, "data"))
        assert asked == opened.evaluate(kinds % (name, "_fullData")) and set(asked) <= set(parts)


def test_legend_distinguishes_recipes_by_dashes(opened):
    opened.select_option("#panels", "model")
    entries = opened.locator("#legend button[data-key]", has_text="angular block,").all()
    dashes = {each.locator("line").get_attribute("stroke-dasharray") for each in entries}
    assert len(dashes) == len({each.inner_text().split(", ")[-1] for each in entries}) > 1


def test_nothing_can_be_sent_to_plotlys_cloud(opened):
    figure = drawn(opened, "curves")
    figure.hover()
    titles = [each.get_attribute("data-title") or "" for each in figure.locator(".modebar-btn").all()]
    assert titles and not any(re.search("share|cloud|studio", title, re.I) for title in titles)


SELECTS = {
    "x": "dropped", "y": "share", "panels": "model", "fall": "piqa/acc", "strip": "qwen3_8b",
    "map": "qwen3_8b: angular", "scale": "raw", "agree": "qwen3_8b", "by": "ranks", "gain": "piqa/acc",
    "cost": "size/parameters", "pace": "seconds", "theme": "dark",
}  # fmt: skip
BOXES = ("bands", "marks", "log", "logx")


def test_controls_change_the_page_and_its_link(watched, opened, report):
    before = {control: opened.input_value(f"#{control}") for control in SELECTS}
    for control, value in SELECTS.items():
        opened.select_option(f"#{control}", value)
    checked = {control: opened.is_checked(f"#{control}") for control in BOXES}
    for control in BOXES:
        opened.click(f"#{control}")
    for control in ("find-falls", "find-runs"):
        opened.fill(f"#{control}", "block")
    link = opened.evaluate("location.hash")
    assert all(f"{control}=" in link for control in (*SELECTS, *BOXES, "find-falls", "find-runs"))
    again = watched.open(report, link)
    assert {control: again.input_value(f"#{control}") for control in SELECTS} == SELECTS
    assert all(before[control] != SELECTS[control] for control in SELECTS)
    assert {control: again.is_checked(f"#{control}") for control in BOXES} == {
        box: not on for box, on in checked.items()
    }
    assert again.input_value("#find-falls") == again.input_value("#find-runs") == "block"


def test_axes_and_scores_follow_their_controls(opened):
    opened.select_option("#x", "size/weight_bytes")
    opened.select_option("#y", "share")
    text = drawn(opened, "curves").locator(".plot").inner_text()
    assert "bytes of weights" in text and "share of dense above chance" in text and "loss / log V" in text
    for axis, words in (("size/flops_per_token", "FLOPs per token"), ("speed/tokens_per_second", "tokens/s")):
        opened.select_option("#x", axis)
        opened.select_option("#cost", axis)
        for name in ("curves", "pareto"):
            assert words in drawn(opened, name).locator(".plot").inner_text()


def test_all_panels_are_drawn_after_the_first(opened):
    opened.select_option("#panels", "model")
    opened.reload()
    titles = drawn(opened, "curves").locator(".plot .annotation-text", has_text="validation/loss")
    titles.nth(len(MODELS) - 1).wait_for()
    assert titles.count() == len(MODELS)


def test_filters_and_legend_hide_curves_across_reload(watched, opened, report):
    opened.select_option("#panels", "measure")
    total = shown_curves(opened)
    opened.uncheck("#facets input[data-facet=model][value=phi_2]")
    without = shown_curves(opened)
    assert 0 < without < total
    opened.locator("#legend button[data-key]").first.click()
    assert shown_curves(opened) == without - 1
    assert opened.locator("#legend button[aria-pressed=false]").count() == 1
    again = watched.open(report, opened.evaluate("location.hash"))
    assert shown_curves(again) == without - 1
    assert not again.is_checked("#facets input[data-facet=model][value=phi_2]")
    again.click("#reset")
    assert shown_curves(again) == total and again.evaluate("location.hash") == ""


def test_legend_entry_toggles_all_model_panels(opened):
    opened.select_option("#panels", "model")
    total = shown_curves(opened)
    entry = opened.locator("#legend button[data-key]", has_text="angular block, qlora")
    assert entry.count() == 1
    entry.click()
    assert shown_curves(opened) == total - 3 and entry.get_attribute("aria-pressed") == "false"
    entry.click()
    assert shown_curves(opened) == total and "off=" not in opened.evaluate("location.hash")


def test_all_and_none_buttons_of_filters_and_legend(opened):
    total = shown_curves(opened)
    opened.click("#facets button[data-facet=recipe][value=none]")
    assert shown_curves(opened) == 0 and "No curve passes" in opened.inner_text("figure[data-figure=curves]")
    opened.click("#facets button[data-facet=recipe][value=all]")
    opened.click("#legend-none")
    assert shown_curves(opened) == 0
    opened.click("#legend-all")
    assert shown_curves(opened) == total


def test_checkboxes_switch_tasks(opened):
    names = [each.get_attribute("value") for each in opened.locator("#measures input:checked").all()]
    opened.uncheck(f"#measures input[value='{names[0]}']")
    drawn(opened, "curves")
    assert names[0] not in opened.inner_text("figure[data-figure=curves] .plot")
    assert names[0] not in opened.evaluate("location.hash")


def test_commonest_loss_is_drawn_first(opened):
    measures = json.loads(opened.locator("script#data").text_content())["measures"]
    times = {each["name"]: each["times"] for each in measures}
    boxes = opened.locator("#measures input:checked").all()
    losses = {name: count for name, count in times.items() if name.endswith("/loss")}
    first = [name for name in (box.get_attribute("value") for box in boxes) if name in losses]
    assert [losses[name] for name in first] == [max(losses.values())] and len(set(times.values())) > 1


def test_transition_table_sorts_and_searches(opened):
    head = opened.locator("#falls-table thead th", has_text="Midpoint")
    head.locator("button").click()
    assert opened.locator("#falls-table th[aria-sort=ascending]").count() == 1
    cells = opened.locator("#falls-table tbody tr td:nth-child(5)").all_inner_texts()
    numbers = [float(cell.split()[0]) for cell in cells if cell]
    assert len(numbers) > 5 and numbers == sorted(numbers)
    opened.locator("#falls-table thead th", has_text="Midpoint").locator("button").click()
    assert (
        opened.locator("#falls-table tbody tr td:nth-child(5)").first.inner_text().split()[0] == f"{max(numbers):.1f}"
    )
    opened.fill("#find-falls", "phi_2 piqa/acc_norm not")
    rows = opened.locator("#falls-table tbody tr").all_inner_texts()
    assert rows and all("phi_2" in row and "piqa/acc_norm" in row for row in rows)
    assert opened.evaluate("document.activeElement.id") == "find-falls"


def test_curve_without_transition_has_no_mark_or_number(opened):
    opened.fill("#find-falls", "pico")
    rows = opened.locator("#falls-table tbody tr")
    assert rows.count() > 0
    for row in rows.all():
        cells = row.locator("th, td").all_inner_texts()
        assert cells[4:8] == [""] * 4 and cells[8]


def test_hovering_a_point_describes_it(opened):
    drawn(opened, "curves").locator(".scatterlayer .points path").nth(3).hover(force=True)
    text = opened.locator(".hoverlayer").first.text_content()
    assert "layers cut" in text and "±" in text


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_saved_as_svg_png_and_csv(opened, name):
    figure = drawn(opened, name)
    for kind in ("SVG", "PNG", "CSV"):
        with opened.expect_download() as download:
            figure.locator(f"button[data-save={kind}]").click()
        content = Path(download.value.path()).read_bytes()
        assert download.value.suggested_filename == f"depthcut-{name}.{kind.lower()}"
        if kind == "SVG":
            assert ET.fromstring(content).tag.endswith("svg") and b"http" not in re.sub(
                rb"xmlns[:\w]*=\"[^\"]*\"", b"", content
            )
        elif kind == "PNG":
            assert content.startswith(b"\x89PNG") and len(content) > 5000
        else:
            rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
            assert len(rows) > 2 and len({len(row) for row in rows}) == 1
            assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)


def test_csv_download_escapes_formulas(opened, outputs):
    with opened.expect_download() as download:
        opened.click("#runs-csv")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"))))
    records = {point.record["digest"]: point.record for point in study.read_studies([outputs]).points}
    assert {row["digest"] for row in rows} == set(records)
    assert {row["study"] for row in rows} >= {"'=HYPERLINK(1)", "real"}
    for row in rows:
        assert float(row["pruned/validation/loss"]) == pytest.approx(
            records[row["digest"]]["pruned/validation/loss"], rel=1e-5
        )


def test_figure_numbers_are_available_as_a_table(opened):
    figure = drawn(opened, "curves")
    figure.locator("summary").click()
    figure.locator("details tbody tr").nth(20).wait_for(state="attached")


def test_hostile_name_is_text(opened):
    for name in FIGURES:
        drawn(opened, name)
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("img").count() == 0 and opened.locator("#overview b").count() == 0
    assert opened.inner_text("#title") == HOSTILE and opened.title() == HOSTILE
    assert HOSTILE.rsplit("/", 1)[-1] in opened.inner_text("#facets")
    opened.locator("#failed summary").click()
    assert HOSTILE in opened.inner_text("#failed li")


def test_run_page_has_plan_numbers_config_and_back(opened, outputs):
    opened.fill("#find-runs", "real lora deepest")
    opened.locator("#runs-table tbody a").first.click()
    digest = re.search(r"run=(\w+)", opened.evaluate("location.hash"))[1]
    record = json.loads((outputs / "real" / digest / "record.json").read_text())
    text = opened.inner_text("#run")
    assert record["plan"]["words"] in text and f"{record['healed/validation/loss']:.3f}" in text
    assert record["versions"]["torch"] in text and str(record["commit"]) in text
    assert opened.locator("#run .stack .gone").count() == round(record["fraction"] * record["plan"]["depth"])
    opened.locator("#run .plot svg").first.wait_for()
    assert not opened.is_visible("#overview")
    opened.go_back()
    assert opened.is_visible("#overview") and not opened.is_visible("#run")
    opened.go_forward()
    opened.click("#back")
    assert opened.is_visible("#overview")


def test_config_on_a_run_page_reproduces_it(opened, outputs, tmp_path):
    opened.fill("#find-runs", "real lora block")
    opened.locator("#runs-table tbody a").first.click()
    command = opened.inner_text("#command")
    assert command.startswith("python run.py --config ") and str(outputs / "real") in command
    with opened.expect_download() as download:
        opened.click("#config")
    download.value.save_as(tmp_path / "config.yaml")
    again = run("--config", str(tmp_path / "config.yaml"))
    assert again.returncode == 0 and "already done" in again.stderr, again.stderr


def test_link_to_a_missing_run_says_so(watched, report):
    opened = watched.open(report, "#run=0000")
    assert "no run 0000" in opened.inner_text("#run")
    opened.click("#back")
    assert opened.is_visible("#curves")


def test_runs_table_sorts_and_shows_more(opened):
    opened.locator("#runs-table thead button", has_text="Cut").click()
    cuts = [float(text.split()[0]) for text in opened.locator("#runs-table tbody tr td:nth-child(6)").all_inner_texts()]
    assert cuts == sorted(cuts) and len(cuts) > 100


def test_navigation_to_sections_keeps_the_state(opened):
    opened.select_option("#x", "dropped")
    opened.click("nav a[href='#healing']")
    assert "x=dropped" in opened.evaluate("location.hash")
    assert opened.evaluate("document.getElementById('healing').getBoundingClientRect().top < innerHeight")


def test_page_works_with_the_keyboard_alone(watched, report):
    opened = watched.open(report)
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.id") == "skip"
    total = shown_curves(opened)
    opened.locator("#legend button[data-key]").nth(1).focus()
    key = opened.evaluate("document.activeElement.dataset.key")
    opened.keyboard.press("Space")
    assert shown_curves(opened) < total
    assert opened.evaluate("document.activeElement.dataset.key") == key
    opened.keyboard.press("Space")
    assert shown_curves(opened) == total
    box = opened.locator("#facets input[data-facet=prune]").first
    box.focus()
    opened.keyboard.press("Space")
    assert opened.evaluate("document.activeElement.dataset.facet") == "prune" and shown_curves(opened) < total - 1


def test_every_control_has_an_accessible_name(opened):
    unnamed = opened.evaluate(
        """[...document.querySelectorAll("button, select, input, a, figure, section")].filter((each) => {
          const label = each.closest("label");
          const named = each.getAttribute("aria-label") || each.getAttribute("aria-labelledby");
          return !(each.textContent.trim() || named || (label && label.textContent.trim()));
        }).map((each) => each.outerHTML)"""
    )
    assert unnamed == []


TABBED = """[...document.querySelectorAll("a, button, input, select, summary, [tabindex]")]
  .filter((each) => each.tabIndex >= 0 && each.checkVisibility())
  .filter((each) => !each.closest("details:not([open]) > :not(summary)"))"""


def test_accessibility_tree_has_names_and_no_pictures(opened):
    for name in FIGURES:
        drawn(opened, name)
    opened.locator("figure[data-figure=forest] summary").click()
    said = opened.locator("body").aria_snapshot()
    for words in ("banner", 'navigation "Sections"', 'complementary "Filters"', "main", "contentinfo"):
        assert re.search(rf"^ *- {words}:?", said, re.M), words
    assert said.count("- figure ") == len(FIGURES) and "20%" not in said  # what plotly writes beside its axes
    names = (
        "Transitions: one row per curve and task",
        "Runs: one row per record",
        "Numbers of the figure: Transitions with",
    )
    for name in names:
        table = opened.get_by_role("table", name=name)
        assert table.count() == 1 and opened.get_by_role("region", name=name).count() == 1
        assert table.get_by_role("rowheader").count() == table.locator("tbody tr").count() > 0
    head = opened.get_by_role("columnheader", name="Midpoint, %", exact=True)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert opened.get_by_role("status").count() == 4


def test_tab_order_follows_the_page_past_plots(opened):
    for name in FIGURES:
        drawn(opened, name)
    stops = opened.evaluate(f"{TABBED}.map((each) => [each.tabIndex, Boolean(each.closest('.plot'))])")
    assert len(stops) > 100 and all(index == 0 and not inside for index, inside in stops)
    opened.evaluate("scrollTo(0, 0); document.body.tabIndex = -1; document.body.focus()")
    for place in range(16):
        opened.keyboard.press("Tab")
        assert opened.evaluate(f"{TABBED}.indexOf(document.activeElement)") == place
        assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_run_page_is_named_and_focused_by_heading(opened):
    opened.fill("#find-runs", "real lora block")
    opened.locator("#runs-table tbody a").first.click()
    heading = opened.get_by_role("heading", level=2).inner_text()
    assert opened.get_by_role("main", name=heading).count() == 1
    assert opened.evaluate("document.activeElement.id") == "run" and heading in opened.title()
    assert opened.get_by_role("table", name="Scores by stage").get_by_role("rowheader").count() > 2


def test_light_and_dark(browser, report):
    for scheme, ground in (("dark", "rgb(20, 24, 29)"), ("light", "rgb(255, 255, 255)")):
        watched = Watched(browser, color_scheme=scheme)
        opened = watched.open(report)
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        assert drawn(opened, "curves").locator(".plot .main-svg").first.evaluate("e => e.style.background") == ground
        watched.close()


def test_print_is_light_with_figures_without_controls(browser, report):
    watched = Watched(browser, color_scheme="dark")
    opened = watched.open(report)
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [opened.locator(f"figure[data-figure={name}] .plot svg").count() > 0 for name in FIGURES] == [True] * 7
    assert not opened.is_visible("aside") and not opened.is_visible("#x") and not opened.is_visible("nav")
    widths = opened.evaluate("[...document.querySelectorAll('.plot .main-svg')].map((each) => each.clientWidth)")
    assert opened.evaluate("document.body.clientWidth") == max(widths) == 700  # what a sheet of A4 takes as it is
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    width = "document.querySelector('[data-figure=curves] .main-svg').clientWidth"
    assert any(opened.wait_for_timeout(100) or opened.evaluate(width) > 900 for _ in range(100))
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert opened.pdf().startswith(b"%PDF")
    watched.close()


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_no_width_makes_the_page_scroll_sideways(watched, report, width):
    watched.page.set_viewport_size({"width": width, "height": 800})
    opened = watched.open(report)
    for name in FIGURES:
        drawn(opened, name)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_single_and_uncut_records_make_a_page(watched, outputs, tmp_path):
    source = sorted(outputs.glob("real/*/record.json"))[0].parent
    shutil.copytree(source, tmp_path / "one" / source.name)
    record = json.loads((tmp_path / "one" / source.name / "record.json").read_text())
    bare = {key: value for key, value in record.items() if not key.startswith(("dense/", "pruned/", "healed/"))}
    for number, numbers in enumerate((record, bare)):
        (tmp_path / "one" / source.name / "record.json").write_text(json.dumps(numbers))
        page.write_page(data.page_data(study.read_studies([tmp_path / "one"]), "one"), tmp_path / f"{number}.html")
        opened = watched.open(tmp_path / f"{number}.html")
        assert "1 done" in opened.inner_text("#words")
        assert opened.locator("#runs-table tbody tr").count() == 1


@dataclass(frozen=True)
class Sweep:
    """A served study, and points to add to it."""

    folder: Path
    others: list[Path]
    url: str
    server: Any


@pytest.fixture
def sweep(outputs, tmp_path, monkeypatch):
    """Serve a study of one finished point, with two healed points to add."""
    monkeypatch.setattr(serve, "POLL_MILLISECONDS", 200)
    healed = (path.parent for path in sorted(outputs.glob("made_phi_2/*/heal.csv")))
    source, *others = (folder for folder in healed if (folder / "record.json").exists())
    shutil.copytree(source, tmp_path / "s" / source.name)
    with serve.make_server([tmp_path / "s"], 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield Sweep(
            folder=tmp_path / "s", others=others, url=f"http://127.0.0.1:{serving.server_port}/", server=serving
        )
        serving.shutdown()


def test_served_page_follows_a_sweep_and_keeps_view(watched, sweep):
    opened = watched.open(sweep.url, "#x=dropped")
    assert "1 done" in opened.inner_text("#words")
    opened.focus("#find-runs")
    shutil.copytree(sweep.others[0], sweep.folder / sweep.others[0].name)
    opened.locator("#words", has_text="2 done").wait_for()
    assert opened.locator("#runs-table tbody tr").count() == 1  # no reader is interrupted
    opened.focus("#print")
    opened.locator("#runs-table", has_text=sweep.others[0].name[:8]).wait_for()
    assert opened.input_value("#x") == "dropped" and opened.evaluate("document.activeElement.id") == "print"
    opened.goto("about:blank")


def test_running_points_healing_curve_updates_in_place(watched, sweep):
    folder = sweep.folder / sweep.others[0].name
    shutil.copytree(sweep.others[0], folder)
    (folder / "record.json").unlink()
    rows = (folder / "heal.csv").read_text().splitlines(keepends=True)
    (folder / "heal.csv").write_text("".join(rows[:41]))
    with FileLock(lock_path(folder)):
        opened = watched.open(sweep.url)
        opened.locator("#running", has_text="step 40 of 5000").wait_for()
        assert "1 done, 0 failed, 1 running" in opened.inner_text("#words")
        assert opened.get_by_role("table", name="Points that run now").get_by_role("progressbar").count() == 1
        last = "document.querySelector('[data-figure=healing] .plot').data.at(-1).x.at(-1)"
        drawn(opened, "healing")
        assert opened.evaluate(last) == 40 * 32768
        opened.evaluate("window.same = true")
        (folder / "heal.csv").write_text("".join(rows[:81]))
        opened.locator("#running", has_text="step 80 of 5000").wait_for()
        drawn(opened, "healing")
        for _ in range(200):  # the figure is redrawn after the text
            if opened.evaluate(last) == 80 * 32768:
                break
            opened.wait_for_timeout(50)
        assert opened.evaluate(last) == 80 * 32768 and opened.evaluate("window.same")
    opened.locator("#words", has_text="0 running, 1 left").wait_for()
    assert not opened.is_visible("#running") and opened.evaluate("window.same")
    opened.goto("about:blank")


def test_lost_server_is_reported(watched, sweep):
    opened = watched.open(sweep.url)
    sweep.server.shutdown()
    sweep.server.server_close()
    opened.locator("#said", has_text="does not respond").wait_for()
    opened.goto("about:blank")
    assert all("net::ERR_CONNECTION" in complaint for complaint in watched.complaints)
    watched.complaints.clear()
