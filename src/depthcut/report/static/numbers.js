// Numbers as text.

/** Format a number with three or four significant digits; what is missing is empty, and text stays as it is. */
export function formatNumber(value) {
  if (value == null) return "";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (size >= 1e9) return (value / 1e9).toPrecision(3) + " G";
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + " M";
  if (Number.isInteger(value)) return String(value);
  if (size >= 1000) return value.toFixed(0);
  if (size >= 100) return value.toFixed(1);
  return size >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}

export const formatPercent = (share) => (share == null ? "" : (100 * share).toFixed(1) + " %");

export const formatWithError = (value, error) => formatNumber(value) + (error ? " ± " + formatNumber(error) : "");

/** Format [estimate, low, high], which are shares: "50.0 % (45.0 % to 55.0 %)". */
export function formatInterval(interval) {
  if (!interval) return "";
  const [estimate, low, high] = interval.map(formatPercent);
  return `${estimate} (${low} to ${high})`;
}

/** Format [estimate, low, high] for a column whose head says "%": "50.0 (45.0 to 55.0)". */
export function formatIntervalInPercent(interval) {
  if (!interval) return "";
  const [estimate, low, high] = interval.map((share) => (100 * share).toFixed(1));
  return `${estimate} (${low} to ${high})`;
}
