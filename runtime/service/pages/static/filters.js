// Filters for a catalogue's columns, and the condition that they make.

import { Field, html, useState } from "./ui.js";
import { count, number } from "./words.js";

const FEW = 8; // number of values of a column that are shown at first
const FILTERED = ["text", "boolean", "number", "time"];

export const NO_FILTERS = { values: {}, ranges: {}, own: "" };

/** The condition in the language of `where`, or null without filters. Columns whose name cannot be quoted are not offered. */
export function whereOf({ values, ranges, own }) {
  const parts = [];
  for (const [name, chosen] of Object.entries(values)) {
    if (chosen.length) parts.push(`${quoted(name)} in (${chosen.map(literal).join(", ")})`);
  }
  for (const [name, [low, high]] of Object.entries(ranges)) {
    if (low !== "") parts.push(`${quoted(name)} >= ${bound(low)}`);
    if (high !== "") parts.push(`${quoted(name)} <= ${bound(high)}`);
  }
  if (own.trim()) parts.push(parts.length ? `(${own.trim()})` : own.trim());
  return parts.length ? parts.join(" and ") : null;
}

// A column may be named __proto__, which every object has.
const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);
const quoted = (name) => `"${name}"`;
const literal = (value) => (typeof value === "boolean" ? String(value) : `'${value.replaceAll("'", "''")}'`);
const bound = (text) => (/^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? text : literal(text));

export const howMany = ({ values, ranges, own }) =>
  Object.values(values).filter((chosen) => chosen.length).length +
  Object.values(ranges).filter(([low, high]) => low !== "" || high !== "").length +
  (own.trim() ? 1 : 0);

/** The filters of all columns. */
export function Filters({ columns, filters, onChange }) {
  const offered = columns.filter(
    (one) => FILTERED.includes(one.kind) && !one.name.includes('"') && (one.low !== null || one.values.length > 0),
  );
  const change = (part, name, value) => onChange({ ...filters, [part]: { ...filters[part], [name]: value } });
  return html`<section class="filters" aria-label="Filters">
    ${offered.map((column) =>
      column.values.length
        ? html`<${Values}
            key=${column.name}
            column=${column}
            chosen=${own(filters.values, column.name) ?? []}
            onChange=${(chosen) => change("values", column.name, chosen)}
          />`
        : html`<${Range}
            key=${column.name}
            column=${column}
            range=${own(filters.ranges, column.name) ?? ["", ""]}
            onChange=${(range) => change("ranges", column.name, range)}
          />`,
    )}
    <label class="field">
      Condition
      <${Field}
        type="text"
        value=${filters.own}
        placeholder="year >= 2024"
        spellcheck=${false}
        onDone=${(text) => onChange({ ...filters, own: text })}
      />
    </label>
    ${howMany(filters) > 0 && html`<button onClick=${() => onChange(NO_FILTERS)}>Clear all filters</button>`}
  </section>`;
}

/** Checkboxes for the most frequent values of a column. */
function Values({ column, chosen, onChange }) {
  const [all, setAll] = useState(false);
  const [find, setFind] = useState("");
  const matching = column.values.filter(([value]) => String(value).toLowerCase().includes(find.toLowerCase()));
  const shown = all || find ? matching : matching.slice(0, FEW);
  const unseen = column.distinct - column.values.length;
  const toggle = (value) =>
    onChange(chosen.includes(value) ? chosen.filter((one) => one !== value) : [...chosen, value]);
  return html`<details open=${chosen.length > 0}>
    <summary>${column.name}${chosen.length > 0 && html` <span class="badge">${chosen.length}</span>`}</summary>
    ${
      column.values.length > FEW &&
      html`<input
        type="search"
        aria-label=${`Find a value of ${column.name}`}
        placeholder="Find a value"
        value=${find}
        onInput=${(event) => setFind(event.target.value)}
      />`
    }
    <ul>
      ${shown.map(
        ([value, n]) =>
          html`<li key=${String(value)}>
            <label>
              <input type="checkbox" checked=${chosen.includes(value)} onChange=${() => toggle(value)} />
              <span class="value" dir="auto">${String(value) || "(empty)"}</span> <small>${count(n)}</small>
            </label>
          </li>`,
      )}
    </ul>
    ${!shown.length && html`<p class="quiet">No such value.</p>`}
    ${
      !find &&
      matching.length > FEW &&
      html`<button class="link" onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show all ${matching.length}`}</button>`
    }
    ${all && unseen > 0 && html`<p class="quiet">${count(unseen)} rarer values are not listed; name them in a condition.</p>`}
  </details>`;
}

/** Fields "from" and "to" for a column of numbers or times. */
function Range({ column, range, onChange }) {
  const shown = column.kind === "number" ? number : (end) => String(end).slice(0, 10);
  const end = (i, label, placeholder) =>
    html`<label>
      ${label}
      <${Field}
        type="text"
        inputmode=${column.kind === "number" ? "decimal" : "text"}
        aria-label=${`${column.name} ${label}`}
        placeholder=${placeholder}
        value=${range[i]}
        onDone=${(text) => onChange(range.map((one, j) => (j === i ? text.trim() : one)))}
      />
    </label>`;
  const used = range[0] !== "" || range[1] !== "";
  return html`<details open=${used}>
    <summary>${column.name}${used && html` <span class="badge">1</span>`}</summary>
    <div class="range">${end(0, "from", shown(column.low))}${end(1, "to", shown(column.high))}</div>
  </details>`;
}

/** At most so many hits of each value of a column. */
export function Groups({ columns, groupBy, perGroup, onChange }) {
  const offered = columns.filter((one) => one.kind !== "other" && (one.values.length > 0 || one.kind === "number"));
  return html`<div class="field row">
    <label>
      Few of each
      <select value=${groupBy ?? ""} onChange=${(event) => onChange(event.target.value || null, perGroup)}>
        <option value="">no limit</option>
        ${offered.map((one) => html`<option value=${one.name}>${one.name}</option>`)}
      </select>
    </label>
    ${
      groupBy &&
      html`<label>
        at most
        <${Field}
          type="number"
          min="1"
          max="1000"
          value=${perGroup}
          onDone=${(text) => onChange(groupBy, Math.min(1000, Math.max(1, Math.round(Number(text)) || 1)))}
        />
      </label>`
    }
  </div>`;
}
