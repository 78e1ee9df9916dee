// Styles of curves: safe for the colour-blind, and distinct without colour.
import { unique } from "./text.js";

const LIGHT_PALETTE = [
  "#0072B2",
  "#D55E00",
  "#007A5A",
  "#AA4499",
  "#2F9BD6",
  "#B8860B",
  "#332288",
  "#882255",
  "#5F6B2D",
  "#6F6F6F",
];
const DARK_PALETTE = [
  "#5DB7F0",
  "#FF9A4D",
  "#3DD1A5",
  "#E29BD0",
  "#9AD9FF",
  "#F2C14E",
  "#A9A4F5",
  "#F08AA8",
  "#C5D36B",
  "#BDBDBD",
];
const DASHES = ["solid", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"];
const GLYPHS = {
  circle: "●",
  square: "■",
  diamond: "◆",
  "triangle-up": "▲",
  cross: "✚",
  x: "✖",
  star: "★",
  pentagon: "⬟",
};

/** Return plotly's symbol as a character. */
export const symbolGlyph = (symbol) => GLYPHS[symbol.replace("-open", "")];

/** Name a method by its metric, pruner and replacement. */
export const methodName = ({ metric, prune, replace }) =>
  [metric, prune, replace === "none" ? "" : replace].filter(Boolean).join(" ");

/** Name a method, and what it removes unless that is layers. */
export const methodAndUnit = (values) =>
  [methodName(values), values.unit === "layer" ? "" : values.unit].filter(Boolean).join(" ");

/** The titles and styles of the curves of a page, by what they have in common and what tells them apart. */
export class LineStyles {
  constructor(lines) {
    this.models = unique(lines.map((line) => line.of.model));
    this.recipes = unique(lines.map((line) => line.of.recipe)).filter(Boolean);
    this.colourOf = this.colouredFacet(unique(lines.map((line) => methodAndUnit(line.of))));
    this.coloured = unique(lines.map(this.colourOf));
  }

  /** Colour distinguishes methods; without a choice of them, models; else recipes. */
  colouredFacet(methods) {
    if (methods.length > 1) return (line) => methodAndUnit(line.of);
    return this.models.length > 1 ? (line) => line.of.model : (line) => line.of.recipe;
  }

  title(line) {
    return (this.models.length > 1 ? line.of.model + ": " : "") + line.label;
  }

  /** Return {color, dash, symbol}; unhealed curves are dotted with open symbols. */
  style(line, dark) {
    const { model, recipe } = line.of;
    const palette = dark ? DARK_PALETTE : LIGHT_PALETTE;
    const colour = Math.max(0, this.coloured.indexOf(this.colourOf(line)));
    const symbol = this.models.length > 1 ? this.models.indexOf(model) : Math.floor(colour / palette.length);
    return {
      color: palette[colour % palette.length],
      dash: recipe ? DASHES[this.recipes.indexOf(recipe) % DASHES.length] : "dot",
      symbol: SYMBOLS[Math.max(0, symbol) % SYMBOLS.length] + (recipe ? "" : "-open"),
    };
  }
}
