// CSV that spreadsheets open as text and numbers.

const FORMULA_START = /^\s*[=+\-@]|^[\t\r\n]/;

/** Format a cell. Text that a spreadsheet would run as a formula gets an apostrophe; missing numbers are empty. */
export function csvCell(value) {
  if (value == null || (typeof value === "number" && !Number.isFinite(value))) return "";
  if (typeof value === "number") return String(value);
  const text = (FORMULA_START.test(value) ? "'" : "") + value;
  return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

/** Return a whole file, with the byte order mark by which Excel knows UTF-8. */
export function csvDocument(head, rows) {
  const lines = [head, ...rows].map((row) => row.map(csvCell).join(","));
  return "\ufeff" + lines.map((line) => line + "\r\n").join("");
}
