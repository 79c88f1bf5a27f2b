// Parts that all pages share: the header with links to the others, notices, dialogs, and the view of a single hit.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { address, thumbnail } from "./api.js";
import { copy, counted, decimals, number, percent, titleOf } from "./words.js";

const PAGES = [
  ["search", "./", "Search"],
  ["compare", "./compare", "Compare"],
  ["look", "./look", "Look"],
];

export function Header({ page, children }) {
  return html`<header class="top">
    <a class="skip" href="#main">Skip to the content</a>
    <a class="brand" href="./"><img src="pages/icon.svg" alt="" width="24" height="24" /> plaudit</a>
    <nav aria-label="Pages">
      ${PAGES.map(
        ([name, path, label]) =>
          html`<a href=${address(path.slice(1)).href} aria-current=${name === page ? "page" : null}>${label}</a>`,
      )}
    </nav>
    ${children}
    ${
      document.body.dataset.guarded === "yes" &&
      html`<form method="post" action="sign-out" class="sign-out"><button>Sign out</button></form>`
    }
  </header>`;
}

/** A message if there is nothing to show, or something went wrong. `again` adds a button to try again. */
export function Notice({ title, children, again, fault }) {
  return html`<div class=${`notice${fault ? " fault" : ""}`} role=${fault ? "alert" : "status"}>
    <h2>${title}</h2>
    <p>${children}</p>
    ${again && html`<button onClick=${again}>Try again</button>`}
  </div>`;
}

/** A short-lived message that something was done, and a function to show it. */
export function useSaid() {
  const [said, setSaid] = useState("");
  useEffect(() => {
    if (!said) return undefined;
    const timer = setTimeout(() => setSaid(""), 2500);
    return () => clearTimeout(timer);
  }, [said]);
  return [html`<div class=${`said${said ? " shown" : ""}`} role="status">${said}</div>`, setSaid];
}

/** Calls `keys[event.key](event)`, unless a person is writing, or holds Ctrl, Alt or Meta. */
export function useKeys(keys) {
  const latest = useRef(keys);
  latest.current = keys;
  // Set up as soon as the page is drawn, so that no early key is missed.
  useLayoutEffect(() => {
    const pressed = (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || isWriting(event.target)) return;
      const act = Object.hasOwn(latest.current, event.key) ? latest.current[event.key] : null;
      if (act && act(event) !== false) event.preventDefault();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

const isWriting = (element) =>
  element instanceof HTMLElement &&
  (element.isContentEditable ||
    ["TEXTAREA", "SELECT"].includes(element.tagName) ||
    (element.tagName === "INPUT" && !["checkbox", "radio", "button"].includes(element.type)));

/** A native dialog of the browser, which keeps the focus inside and closes with Escape. */
export function Dialog({ label, onClose, children, kind = "" }) {
  const dialog = useRef(null);
  useLayoutEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    return () => before?.focus?.();
  }, []);
  return html`<dialog
    ref=${dialog}
    class=${kind}
    aria-label=${label}
    onClose=${onClose}
    onClick=${(event) => event.target === dialog.current && dialog.current.close()}
  >
    <button class="close" aria-label="Close" title="Close (Escape)" onClick=${() => dialog.current.close()}>✕</button>
    ${children}
  </dialog>`;
}

/** A panel that can be closed. It starts open if the window is wide; its badge shows how much is set inside. */
export function Panel({ label, badge, children }) {
  const [first] = useState(() => matchMedia("(min-width: 860px)").matches);
  return html`<details class="panel" open=${first}>
    <summary>${label} ${badge > 0 && html`<span class="badge">${badge}</span>`}</summary>
    ${children}
  </details>`;
}

/** A share from 0 to 1 as a bar with its number. Screen readers read only the number. */
export function Bar({ label, value, text, kind }) {
  const width = `${Math.round(100 * Math.min(1, Math.max(0, value ?? 0)))}%`;
  return html`<div class="bar ${kind}" title=${`${label} ${text}`}>
    <span>${label}</span><i aria-hidden="true"><b style=${{ width }}></b></i><span class="figure">${text}</span>
  </div>`;
}

/** One picture of the catalogue at full size, with all its data. */
export function Viewer({ hit, at, total, onMove, onClose, actions, figures = [] }) {
  const [said, say] = useSaid();
  useKeys({
    ArrowLeft: () => at > 0 && onMove(at - 1),
    ArrowRight: () => at < total - 1 && onMove(at + 1),
  });
  if (!hit) return html`<${Dialog} label="A picture" onClose=${onClose}><p class="quiet">Loading…</p></${Dialog}>`;
  const known = [
    ["similarity", hit.similarity === undefined ? null : decimals(hit.similarity)],
    ["popularity", percent(hit.percentile)],
    ["counts", counted(hit)],
    ...figures.map(([name, of]) => [name, of(hit)]),
    ...Object.entries(hit.metadata).map(([name, value]) => [name, typeof value === "number" ? number(value) : value]),
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const copied = async (what, text) => {
    await copy(text);
    say(`The ${what} is on the clipboard.`);
  };
  return html`<${Dialog} label=${titleOf(hit)} kind="viewer" onClose=${onClose}>
    <figure>
      <img src=${thumbnail(hit, 2048)} alt=${titleOf(hit)} key=${hit.id} />
    </figure>
    <div class="about">
      <h2>${titleOf(hit)}</h2>
      <p class="row">
        <button disabled=${at === 0} onClick=${() => onMove(at - 1)} title="Left arrow">← Before</button>
        <button disabled=${at === total - 1} onClick=${() => onMove(at + 1)} title="Right arrow">Next →</button>
        ${actions?.(hit)}
        <button onClick=${() => copied("path", hit.key)}>Copy path</button>
        <button onClick=${() => copied("id", hit.id)}>Copy id</button>
      </p>
      <dl>
        <div><dt>path</dt><dd>${hit.key}</dd></div>
        ${known.map(([name, value]) => html`<div><dt>${name}</dt><dd>${String(value)}</dd></div>`)}
      </dl>
    </div>
    ${said}
  </${Dialog}>`;
}
