"""The files of a report: the page, figures for a paper, tables; and the server."""

import csv
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

import studies
from depthcut.report import __main__ as command
from depthcut.report import curves, data, figures, files, page, plotlyjs, serve, study, tidy, transitions
from depthcut.runtime.errors import UserError
from running import ENVIRONMENT, ROOT
from versions import strict_python


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("made")
    studies.bench("report").make(outputs, 140, steps=150, models=("llama2_7b",))
    return outputs


@pytest.fixture(scope="module")
def points(outputs):
    return study.read_studies([outputs]).points


def report(*arguments, **more) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, *strict_python(), "-m", "depthcut.report", *map(str, arguments)]
    return subprocess.run(
        call, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False, **more
    )


def test_page_is_self_contained(outputs, tmp_path):
    done = report(outputs, outputs / "made_llama2_7b", "-o", tmp_path / "r.html", "--title", "mine & yours")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "r.html"), done.stderr
    text = (tmp_path / "r.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert "<title>mine &amp; yours</title>" in text
    ours = text.replace(plotlyjs.plotly_source(), "")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", ours) and "import(" not in ours
    for script in re.findall(r"<script>(.*?)</script>", text, re.S):
        assert f"'sha256-{page.script_hash(script)}'" in policy
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_plotly_registers_traces_lazily_and_stays_complete():
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    parts = plotlyjs.PARTS_PATTERN.findall(script)
    assert len(parts) == 1 and parts[0].count("(),") > 30 and plotlyjs.WRAPPER_PATTERN.fullmatch(script)
    short = plotlyjs.plotly_source()
    assert short.isascii() and len(short) - len(script) < 1000
    assert f"{parts[0]}()" not in short and parts[0].replace("()", "") in short


def test_unknown_script_is_left_unchanged():
    script = "other(() => { a.register([one(), two()]) });"
    assert plotlyjs.escape_non_ascii(plotlyjs.parse_once(plotlyjs.register_lazily(script))) == script
    assert json.loads(f'"{plotlyjs.escape_non_ascii("x–😀")}"') == "x–😀"


def test_page_has_every_run_and_no_duplicate_lines(outputs, points):
    found = json.loads(json.dumps(data.page_data(study.read_studies([outputs]), "x")))
    assert len(found["runs"]) == len(points) == 140
    assert len({line["key"] for line in found["lines"]}) == len(found["lines"]) == 10
    run = found["runs"][3]
    numbers = dict(zip(found["parts"][run["numbers"]], run["values"], strict=True))
    assert numbers == pytest.approx({key: value for key, value in points[3].record.items() if "/" in key}, rel=1e-5)
    config = {key: value for part in run["config"] for key, value in found["parts"][part].items()}
    assert config == points[3].record["config"]
    assert max(len(curve["loss"]) for curve in found["healing"]) <= 50


def test_missing_number_is_null_and_never_zero(outputs, tmp_path):
    shutil.copytree(outputs, tmp_path / "o")
    for path in sorted((tmp_path / "o").glob("*/*/record.json"))[::2]:
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in record.items() if "boolq" not in key}))
    found = data.page_data(study.read_studies([tmp_path / "o"]), "x")
    values = [value for line in found["lines"] for value in line["y"].get("boolq/acc", [[]])[0]]
    assert 0 not in values and None in values and any(value for value in values)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_for_a_paper(outputs, tmp_path, kind):
    done = report(outputs, "--format", kind, "-o", tmp_path / "figures")
    assert done.returncode == 0, done.stderr
    names = {"curves", "transition", "layers", "agreement", "blocks", "tradeoff", "healing"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{name}.{kind}" for name in names}
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for path in (tmp_path / "figures").iterdir():
        content = path.read_bytes()
        assert content.startswith(starts[kind]) and len(content) > 3000
        if kind == "svg":
            assert ET.fromstring(content).tag.endswith("svg")


def test_same_records_give_the_same_svg(outputs, tmp_path):
    for folder in ("a", "b"):
        made = files.write_output(study.read_studies([outputs]), "svg", tmp_path / folder, "", tmp_path)
        assert len(made) == 7
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_legends_fit_inside_narrow_figures(points):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def one_task(record):
        heal = record["config"]["heal"] | {"an_option_with_a_long_name": record["digest"]}
        numbers = {key: value for key, value in record.items() if "/" not in key or "mmlu" in key}
        return numbers | {"config": record["config"] | {"heal": heal}}

    made = figures.draw_figures([study.FinishedPoint(point.folder, one_task(point.record)) for point in points[::10]])
    for name in ("curves", "healing"):
        canvas = FigureCanvasAgg(made[name])
        canvas.draw()
        (legend,) = made[name].legends
        box, whole = legend.get_window_extent(canvas.get_renderer()), made[name].bbox
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1 and whole.y0 <= box.y0 < box.y1 <= whole.y1, name
        assert min(axis.get_window_extent().height for axis in made[name].axes) > 1.2 * made[name].dpi


def test_files_go_to_the_study_by_default(outputs, tmp_path):
    made = tmp_path / "o" / "made_llama2_7b"
    made.mkdir(parents=True)
    for point in list((outputs / made.name).iterdir())[:3]:
        shutil.copytree(point, made / point.name)
    done = report(made, "--format", "csv")
    assert done.stdout.strip() == str(made / "report.csv"), done.stderr
    (figure,) = (
        path for path in files.write_output(study.read_studies([made]), "svg", None, "", made) if path.stem == "healing"
    )
    assert figure == made / "figures/healing.svg" and figure.is_file()
    assert "skipped" not in study.read_studies([made]).words
    assert command.home([made]) == made and command.home([made, tmp_path / "o"]) == tmp_path / "o"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-o", "x.xlsx"), "-o x.xlsx: the name must end in .html, .csv or .md"),
        (("-o", "figs"), "-o figs: the name must end in .html, .csv or .md"),
        (("-o", "x.png"), "-o x.png: the name must end in .html, .csv or .md; for figures: --format png -o FOLDER"),
        (("-o", "x.md", "--format", "csv"), "-o x.md --format csv: the extension and --format differ"),
    ],
)
def test_unknown_format_is_refused(words, says):
    with pytest.raises(UserError, match=re.escape(says)):
        command.check_output(command.build_parser().parse_args(["outputs/main", *words]))


def test_figures_are_matplotlib_figures(points):
    made = figures.draw_figures(points)
    assert len(made) == 7 and all(isinstance(figure, Figure) for figure in made.values())
    assert figures.draw_figures([]) == {}


def test_figure_lines_start_at_the_dense_model(points):
    from depthcut.report.figures import lines

    rows = tidy.tidy_table([point.record for point in points])
    found, dense = curves.curve_lines(rows), curves.dense_numbers(rows)
    drawn = lines.curve_figure(found, dense, [])
    assert drawn is not None
    (axis,) = (each for each in drawn.axes if each.get_title(loc="left") == "boolq/acc")
    handles, names = axis.get_legend_handles_labels()
    by_name = dict(zip(names, handles, strict=True))
    assert len(by_name) == len(found)
    for line in found:
        x, y = (np.asarray(each) for each in by_name[line.label.replace("$", r"\$")].get_data())
        start = [] if line.healed else [dense[line.keys["model"], ""]["boolq/acc"][0]]
        assert y.tolist() == [*start, *line.names["boolq/acc"].value]
        assert x.tolist() == [*([0.0] * len(start)), *line.fraction]


def test_forest_omits_curves_without_a_transition(points):
    from depthcut.report.figures import forest
    from depthcut.report.transition_data import Transition

    rows = tidy.tidy_table([point.record for point in points])
    found = transitions.curve_transitions(curves.curve_lines(rows), curves.dense_numbers(rows))
    one = next(fall for fall in found if fall.found.seen and fall.name == "boolq/acc")
    none = transitions.CurveTransition(
        next(fall.line for fall in found if fall.line is not one.line), "boolq/acc", Transition("flat")
    )
    both, only = forest.forest_figure([one, none]), forest.forest_figure([one])
    assert both is not None and only is not None
    assert len(both.axes[0].lines) == len(only.axes[0].lines)
    assert [text.get_text() for text in both.axes[0].texts] == ["no transition seen: no fall beyond noise"]
    assert forest.forest_figure([none]) is None


def test_csv_and_markdown_tables(outputs, points, tmp_path):
    assert report(outputs, "--format", "csv", "-o", tmp_path / "t.csv").returncode == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert len(rows) == len(tidy.tidy_table([point.record for point in points]))
    wanted = points[0].record["pruned/boolq/acc"]
    (value,) = (
        float(row["value"])
        for row in rows
        if (row["digest"], row["stage"], row["name"]) == (points[0].record["digest"], "pruned", "boolq/acc")
    )
    assert value == wanted
    assert report(outputs, "-o", tmp_path / "t.md").returncode == 0
    text = (tmp_path / "t.md").read_text()
    assert "| llama2\\_7b | angular | block | none | qlora | boolq/acc |" in text and "140 points: 140 done" in text


def test_nothing_to_show_fails_in_one_line(tmp_path):
    (tmp_path / "s" / "p").mkdir(parents=True)
    (tmp_path / "s" / "p" / "config.yaml").write_text("{}")
    for arguments in (("-o", tmp_path / "r.html"), ("--format", "png")):
        done = report(tmp_path / "s", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert "1 left" in done.stderr
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("arguments", [(), ("--live",), ("serve",), ("x", "--format", "gif")])
def test_wrong_arguments_fail_in_one_line(arguments):
    done = report(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "usage: depthcut report" in done.stderr


def test_help_names_the_page():
    shown = report("--help").stdout
    assert "depthcut report --live outputs" in shown and "figures/*.pdf for a paper" in shown
    assert "127.0.0.1" in report("serve", "--help").stdout or "localhost" in report("serve", "--help").stdout


def get(port, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_server_is_local_and_rebuilds_on_change(outputs, tmp_path):
    source, later, *_ = sorted(outputs.glob("made_llama2_7b/*/record.json"))
    shutil.copytree(source.parent, tmp_path / "s" / source.parent.name)
    with serve.make_server([tmp_path / "s"], 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        port = serving.server_port
        assert serving.server_address[0] == "127.0.0.1"
        status, body = get(port, "/")
        before = json.loads(get(port, "/now")[1])
        assert status == 200 and "connect-src 'self'" in body and before["version"] in body
        assert json.loads(get(port, "/now")[1]) == before and "1 done" in before["words"]
        shutil.copytree(later.parent, tmp_path / "s" / later.parent.name)
        after = json.loads(get(port, "/now")[1])
        assert after["version"] != before["version"] and "2 done" in after["words"]
        assert later.parent.name in get(port, "/")[1]
        for host in ("evil.example:80", "127.0.0.1:evil.com", "localhost.evil.com:80", "127.0.0.1:"):
            assert get(port, "/", host=host)[0] == 403
        two = b"GET /now HTTP/1.1\r\nHost: localhost:80\r\nHost: evil.example\r\n\r\n"
        assert b" 403 " in sent(port, two)
        assert get(port, "/../../etc/passwd")[0] == 404
        serving.shutdown()


def sent(port: int, request: bytes) -> bytes:
    """The answer to a raw request, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_silent_client_is_disconnected(outputs, monkeypatch):
    monkeypatch.setattr(serve.PageHandler, "timeout", 0.2)
    with serve.make_server([outputs], 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        assert sent(serving.server_port, b"GET / HT") == b""
        serving.shutdown()


def test_taken_port_and_missing_study_are_reported(outputs, tmp_path):
    with serve.make_server([outputs], 0) as serving, pytest.raises(ValueError, match="choose another with --port"):
        serve.make_server([outputs], serving.server_port)
    with pytest.raises(ValueError, match="no study at"):
        serve.make_server([tmp_path / "none"], 0)


def test_server_command_ends_with_ctrl_c(outputs):
    call = [sys.executable, "-m", "depthcut.report", "serve", str(outputs), "--port", "0"]
    started = subprocess.Popen(call, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    port = int(re.search(r"http://127.0.0.1:(\d+)/", started.stdout.readline())[1])
    assert get(port, "/")[0] == 200
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=30)
    assert started.returncode == 0 and not err
