// Names and texts of layer strips and of other figures of one model.
import { formatPercent } from "./numbers.js";

/** Append a unit other than the layer in brackets. */
export const withUnit = (name, unit) => name + (unit === "layer" ? "" : ` (${unit})`);

export const stripName = ({ chooser, unit }) => withUnit(chooser, unit);

/** Return the key by which strips and curves of one method are matched. */
export const stripKey = (model, choosers, unit) => [model, choosers.filter(Boolean).join(" "), unit].join("~");

/** Return the layers that are dropped, with the share of seeds in brackets where not all drop them. */
export const droppedLayersText = (shares) =>
  shares
    .map((share, layer) => (share === 1 ? layer : share ? `${layer} (${formatPercent(share)})` : null))
    .filter((text) => text !== null)
    .join(" ");
