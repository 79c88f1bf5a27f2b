// Numbers, names and files in a form for people.

const whole = new Intl.NumberFormat("en");

export const count = (n) => (n === null || n === undefined ? "–" : whole.format(Math.round(n)));
export const decimals = (x, digits = 3) => (x === null || x === undefined ? "–" : x.toFixed(digits));
export const percent = (x, digits = 1) => (x === null || x === undefined ? "–" : `${x.toFixed(digits)} %`);
export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

/** A number of any size as text. */
export function number(x) {
  if (x === null || x === undefined) return "–";
  return Number.isInteger(x) ? count(x) : Math.abs(x) >= 1000 ? whole.format(x) : x.toPrecision(3);
}

export const fileName = (key) => key.split("/").at(-1) || key;
export const titleOf = (hit) => hit.title || fileName(hit.key);

/** A hit's counts in a few words. */
export function counted(hit) {
  if (hit.count === null) return "no count";
  const exposures = hit.metadata.exposures;
  return hit.rate === null || hit.rate === undefined
    ? plural(hit.count, "like", "likes")
    : `${count(hit.count)} of ${count(exposures)} · ${percent(100 * hit.rate)}`;
}

const EMPTY = Object.create(null);
const COLUMNS = ["key", "id", "similarity", "percentile", "blended_score", "count", "rate", "title"];

/** Hits as CSV for spreadsheets. No cell can be taken for a formula. */
export function csv(hits) {
  const others = [...new Set(hits.flatMap((hit) => Object.keys(hit.metadata)))];
  const names = [...COLUMNS.filter((name) => hits.some((hit) => hit[name] !== undefined)), ...others];
  const valueOf = (hit, name) => (COLUMNS.includes(name) ? hit : Object.hasOwn(hit.metadata, name) ? hit.metadata : EMPTY)[name];
  const rows = hits.map((hit) => names.map((name) => cell(valueOf(hit, name))));
  return [names.map(cell), ...rows].map((row) => row.join(",")).join("\r\n") + "\r\n";
}

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = String(value);
  const plain = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

/** Lets the browser save a text as a file. */
export function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Puts a text on the clipboard, even if the page is not served over HTTPS. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
