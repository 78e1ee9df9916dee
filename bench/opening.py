"""Time until a report's page is loaded, and until its first figure is painted, in a headless Chromium.

python bench/opening.py some.html [another.html]        each several times in a fresh browser
"""

import argparse
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

# Marks the first frame with a figure, and the end of loading.
WATCH = """
const painted = new MessageChannel(), seen = (name) => performance.mark(name);
painted.port1.onmessage = () => seen("figure");
const drawn = () => document.querySelector("figure .scatterlayer path");
const frame = () => (drawn() ? painted.port2.postMessage(0) : requestAnimationFrame(frame));
requestAnimationFrame(frame);
addEventListener("load", () => seen("load"));
"""
EVENTS = ("load", "figure")


def opened(page: Path, times: int) -> str:
    """Return the times of a page in a fresh browser: wall time, and CPU time of its main thread."""
    from playwright.sync_api import sync_playwright

    where = shutil.which("chromium") or shutil.which("google-chrome")
    clocks: dict[str, list[tuple[float, float]]] = {name: [] for name in EVENTS}
    for _ in range(times):
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=where, args=["--headless=new", "--no-sandbox"])
            for name, clock in traced(browser.new_page(viewport={"width": 1300, "height": 900}), page).items():
                clocks[name].append(clock)
            browser.close()
    said: list[str] = []
    for name, pairs in clocks.items():
        wall, used = (statistics.median(column) for column in zip(*pairs, strict=True))
        said.append(f"{name} after {wall:.2f} s ({used:.2f} s of processor)")
    load, cores = os.getloadavg()[0], os.cpu_count()
    return f"{'; '.join(said)}: medians of {times}, load {load:.1f} on {cores} cores"


def traced(tab: Any, page: Path) -> dict[str, tuple[float, float]]:
    """Open a page and return the time of each of EVENTS: wall time, and CPU time of its main thread."""
    session, events, ended = tab.context.new_cdp_session(tab), [], []
    tab.add_init_script(WATCH)
    session.on("Tracing.dataCollected", lambda some: events.extend(some["value"]))
    session.on("Tracing.tracingComplete", lambda _: ended.append(True))
    session.send("Tracing.start", {"categories": "blink.user_timing,devtools.timeline", "transferMode": "ReportEvents"})
    tab.goto(page.resolve().as_uri())
    tab.wait_for_function("performance.getEntriesByName('figure').length")
    session.send("Tracing.end")
    while not ended:
        tab.wait_for_timeout(50)
    went = next(each for each in events if each["name"] == "navigationStart" and page.name in str(each["args"]))
    start, process = went["ts"], went["pid"]
    thread = min(each["tts"] for each in events if each["name"] == "CommitLoad" and each["pid"] == process)
    marks = {each["name"]: each for each in events if each["name"] in EVENTS and "tts" in each}
    return {name: ((marks[name]["ts"] - start) / 1e6, (marks[name]["tts"] - thread) / 1e6) for name in EVENTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--times", type=int, default=7)
    options = parser.parse_args()
    for page in options.pages:
        print(f"{page}: {opened(page, options.times)}")


if __name__ == "__main__":
    main()
