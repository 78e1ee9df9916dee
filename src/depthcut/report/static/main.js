// Entry point: fills the page, and redraws it after each change of the state.
import { agreementFigure } from "./agreement.js";
import { drawControls, setUpControls } from "./controls.js";
import { curvesFigure } from "./curves.js";
import { data } from "./data.js";
import { announce, byId, copyText } from "./dom.js";
import { addFigure, afterPaint, redrawFigures, watchFigures } from "./figures.js";
import { drawFilters } from "./filter-boxes.js";
import { followServer } from "./follow.js";
import { forestFigure } from "./forest.js";
import { drawRunningPoints, healingFigure } from "./healing.js";
import { stripsFigure } from "./layer-strips.js";
import { drawLegend } from "./legend.js";
import { startPlotly } from "./plots.js";
import { setUpPrinting } from "./printing.js";
import { drawRunPage } from "./run-page.js";
import { drawRunTable, saveRuns } from "./run-table.js";
import { mapsFigure } from "./score-maps.js";
import { loadState, onStateChange, resetState, state } from "./state.js";
import { currentTheme, systemDark } from "./theme.js";
import { tradeoffFigure } from "./tradeoff.js";
import { drawTransitionTable } from "./transition-table.js";

const FIGURES = [curvesFigure, forestFigure, stripsFigure, mapsFigure, agreementFigure, tradeoffFigure, healingFigure];
let overviewScroll = 0;

function refresh() {
  document.documentElement.dataset.theme = currentTheme();
  byId("overview").hidden = Boolean(state.run);
  byId("run").hidden = !state.run;
  document.title = data.title;
  drawControls();
  if (state.run) {
    drawRunPage();
    return;
  }
  drawFilters();
  drawLegend();
  drawTransitionTable();
  drawRunTable();
  drawRunningPoints();
  redrawFigures();
}

/** Draw the page. Scroll to the top of a run that was opened, and back to the old position in the overview. */
function showState(runBefore) {
  if (!runBefore && state.run) overviewScroll = scrollY;
  refresh();
  if (runBefore === state.run) return;
  scrollTo(0, state.run ? 0 : overviewScroll);
  byId(state.run ? "run" : "main").focus({ preventScroll: true });
}

function followLink() {
  const runBefore = state.run;
  loadState();
  showState(runBefore);
}

/** Go to a section without following its link, because the part after the "#" holds the state. */
function goToSection(event) {
  event.preventDefault();
  const section = byId(event.currentTarget.hash.slice(1));
  const heading = section.querySelector("h2") || section;
  section.scrollIntoView();
  heading.setAttribute("tabindex", "-1");
  heading.focus({ preventScroll: true });
}

function setUpPage() {
  byId("title").textContent = data.title;
  byId("words").textContent = data.words;
  byId("foot").textContent = `Made by depthcut at ${data.made}.`;
  byId("filters").open = innerWidth > 800;
  byId("link").addEventListener("click", () => copyText(location.href, "Copy the address of this page."));
  byId("print").addEventListener("click", () => print());
  byId("runs-csv").addEventListener("click", saveRuns);
  byId("reset").addEventListener("click", () => {
    resetState();
    refresh();
    announce("Reset.");
  });
  for (const link of [...document.querySelectorAll("nav a"), byId("skip")]) link.addEventListener("click", goToSection);
  addEventListener("hashchange", followLink);
  addEventListener("popstate", followLink);
  systemDark.addEventListener("change", refresh);
}

loadState();
onStateChange(showState);
setUpPage();
setUpPrinting(refresh);
setUpControls();
FIGURES.forEach(addFigure);
refresh();
watchFigures();
afterPaint(() => {
  startPlotly();
  if (state.run) drawRunPage();
  else redrawFigures();
  document.documentElement.dataset.ready = "1";
});
if (data.follow) followServer();
