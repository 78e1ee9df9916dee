// Printing: light colours, the width of a sheet, every figure.
import { drawAllFigures } from "./figures.js";
import { startPlotly } from "./plots.js";
import { state } from "./state.js";

export function setUpPrinting(refresh) {
  let themeOnScreen = "";
  addEventListener("beforeprint", () => {
    startPlotly();
    themeOnScreen = state.theme;
    state.theme = "light";
    document.documentElement.classList.add("printing"); // the style sheet gives it the width that figures are drawn to
    refresh();
    if (!state.run) drawAllFigures();
  });
  addEventListener("afterprint", () => {
    state.theme = themeOnScreen;
    document.documentElement.classList.remove("printing");
    refresh();
    for (const node of document.querySelectorAll(".js-plotly-plot")) Plotly.Plots.resize(node);
  });
}
