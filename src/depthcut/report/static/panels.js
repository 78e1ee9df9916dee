// Layouts of figures: panels, their headings and error bars.
import { escapeForPlotly } from "./text.js";

const PANEL_WIDTH = 330; // pixels, at least

/**
 * Arrange `count` panels in at most `most` columns within `width` pixels.
 *
 * Return {height, columns, place}; `place(i)` says where the axes of panel i lie and what plotly calls them.
 */
export function panelGrid(count, most, rowHeight, width, gap = 0.075) {
  const columns = Math.max(1, Math.min(count, most, Math.floor(width / PANEL_WIDTH)));
  const rows = Math.ceil(count / columns);
  const height = rows * rowHeight;
  const [gapAcross, gapDown] = [columns > 1 ? gap : 0, rows > 1 ? 78 / height : 0];
  const panelWidth = (1 - gapAcross * (columns - 1)) / columns;
  const panelHeight = (1 - gapDown * (rows - 1)) / rows;
  const place = (i) => {
    const [column, row] = [i % columns, Math.floor(i / columns)];
    const left = column * (panelWidth + gapAcross);
    const top = 1 - row * (panelHeight + gapDown);
    const n = i ? String(i + 1) : "";
    return {
      n,
      x: "x" + n,
      y: "y" + n,
      xDomain: [left, left + panelWidth],
      yDomain: [Math.max(0, top - panelHeight), top],
      left: column === 0,
      bottom: i + columns >= count,
    };
  };
  return { place, height: height + 60, columns };
}

/** Return the annotation that titles a panel. */
export const panelHeading = (text, place) => ({
  text: "<b>" + escapeForPlotly(text) + "</b>",
  x: place.xDomain[0],
  y: place.yDomain[1],
  xref: "paper",
  yref: "paper",
  xanchor: "left",
  yanchor: "bottom",
  showarrow: false,
  font: { size: 12.5 },
});

/** Return plotly's error bars of [estimate, low, high]. */
export const errorBars = (intervals, color) => ({
  type: "data",
  symmetric: false,
  array: intervals.map(([estimate, , high]) => high - estimate),
  arrayminus: intervals.map(([estimate, low]) => estimate - low),
  color,
  thickness: 1.3,
  width: 4,
});
