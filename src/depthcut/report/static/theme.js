// The colours of the light and the dark theme, and the styles of curves.
import { data } from "./data.js";
import { state } from "./state.js";
import { LineStyles } from "./styles.js";

const LIGHT_COLORS = {
  paper: "#ffffff",
  text: "#1b1f24",
  quiet: "#57606a",
  grid: "#e3e7eb",
  empty: "#f3f5f7",
  full: "#0059b3",
};
const DARK_COLORS = {
  paper: "#14181d",
  text: "#e6e9ed",
  quiet: "#9aa5b1",
  grid: "#2c343d",
  empty: "#1d232a",
  full: "#79b8ff",
};

const lineStyles = new LineStyles(data.lines);

export const systemDark = matchMedia("(prefers-color-scheme: dark)");

export const currentTheme = () => (state.theme !== "auto" ? state.theme : systemDark.matches ? "dark" : "light");

export const figureColors = () => (currentTheme() === "dark" ? DARK_COLORS : LIGHT_COLORS);

/** Return plotly's colour scale of shares. */
export const shareColorscale = () => [
  [0, figureColors().empty],
  [1, figureColors().full],
];

export const lineStyle = (line) => lineStyles.style(line, currentTheme() === "dark");

export const lineTitle = (line) => lineStyles.title(line);
