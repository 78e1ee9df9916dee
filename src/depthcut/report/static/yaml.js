const isMapping = (value) => value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length;

/** Return a nested object as YAML. Scalars and lists are JSON, which is YAML too. */
export function yamlText(mapping, indent = "") {
  const entries = Object.entries(mapping).map(([key, value]) => {
    const name = indent + (/^[A-Za-z_][\w-]*$/.test(key) ? key : JSON.stringify(key));
    return isMapping(value) ? `${name}:\n${yamlText(value, indent + "  ")}` : `${name}: ${JSON.stringify(value)}\n`;
  });
  return entries.join("");
}
