// The order of a table's rows. The link keeps it as "COLUMN.up" or "COLUMN.down".

const isMissing = (value) => value == null || value === "";

/** Compare two cells; intervals compare by their estimates. Missing values come last in either direction. */
export function compareValues(first, second, direction = 1) {
  const [one, other] = [first, second].map((value) => (Array.isArray(value) ? value[0] : value));
  if (isMissing(one) || isMissing(other)) return isMissing(one) - isMissing(other);
  if (typeof one === "number" && typeof other === "number") return direction * (one - other);
  return direction * String(one).localeCompare(String(other), undefined, { numeric: true });
}

/** Return {column, descending}; the column is -1 where the rows keep their own order. */
export function parseSort(text) {
  const [column, direction] = text.split(".");
  return { column: column === "" ? -1 : Number(column), descending: direction === "down" };
}

/** Return the order after a click on the head of a column: ascending first, then descending. */
export function nextSort(text, column) {
  const current = parseSort(text);
  return column + (current.column === column && !current.descending ? ".down" : ".up");
}

export function sortRows(rows, text) {
  const { column, descending } = parseSort(text);
  if (column < 0) return rows;
  return [...rows].sort((first, second) => compareValues(first[column], second[column], descending ? -1 : 1));
}
