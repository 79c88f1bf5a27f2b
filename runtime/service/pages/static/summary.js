// A summary of all votes and of the updates of the head, loaded when it is opened.

import { html, useState } from "./ui.js";
import { ask } from "./api.js";
import { count } from "./words.js";

const SHARES = [
  ["between_people", "two people agree on a pair"],
  ["oneself", "people agree with themselves"],
  ["gold", "known answers are given right"],
  ["left", "the left picture is chosen"],
];

export function Summary() {
  const [summary, setSummary] = useState(null);
  const [fault, setFault] = useState(null);
  const opened = (event) => {
    if (event.target.open) ask("/v1/compare/summary").then(setSummary, setFault);
  };
  return html`<details class="panel summary" onToggle=${opened}>
    <summary>Summary of all votes</summary>
    ${fault && html`<p class="fault" role="alert">${fault.message}</p>`}
    ${!summary && !fault && html`<p class="quiet">Counting…</p>`}
    ${summary && html`<${Figures} summary=${summary} /><${History} promotions=${summary.promotions} />`}
  </details>`;
}

const words = (name) => name.replaceAll("_", " ");
const share = (one) =>
  one.value === null
    ? "no cases yet"
    : `${(100 * one.value).toFixed(0)} % (${(100 * one.low).toFixed(0)} to ${(100 * one.high).toFixed(0)}) of ${count(one.of)}`;

function Figures({ summary }) {
  const choices = Object.entries(summary.choices).map(([name, n]) => `${count(n)} ${words(name)}`);
  const speed = summary.seconds.p50 === undefined ? "" : `half of them within ${summary.seconds.p50.toFixed(1)} s; `;
  return html`<table>
    <tbody>
      <tr><th scope="row">votes</th><td>${count(summary.votes)}${choices.length > 0 && `: ${choices.join(", ")}`}</td></tr>
      ${SHARES.map(([name, label]) => html`<tr><th scope="row">${label}</th><td>${share(summary[name])}</td></tr>`)}
      <tr><th scope="row">speed</th><td>${speed}${count(summary.too_fast)} too fast</td></tr>
    </tbody>
  </table>`;
}

/** All updates of the head by the votes. */
function History({ promotions }) {
  if (!promotions.length) return html`<p class="quiet">No head was trained from these votes yet.</p>`;
  return html`<h2>Heads trained from the votes</h2>
    <ol class="history">
      ${promotions.map(
        (one) => html`<li class=${one.promoted ? "promoted" : ""}>
          <time datetime=${new Date(1000 * one.at).toISOString()}>${new Date(1000 * one.at).toLocaleString("en")}</time>
          <strong>${one.promoted ? "promoted" : "not promoted"}</strong>
          <span>${one.why ?? ""}</span>
        </li>`,
      )}
    </ol>`;
}
