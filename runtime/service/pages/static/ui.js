// Preact, its hooks and templates, which all pages use. Text in a template is never parsed as HTML.

import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";
import { useState } from "./vendor/hooks.js";

export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
export const html = htm.bind(h);

/** An input that calls `onDone` with its text when that is complete. Text that is being typed outlives new drawings of the page. */
export function Field({ value, onDone, ...rest }) {
  const [typed, setTyped] = useState(null);
  const done = (event) => {
    setTyped(null);
    onDone(event.target.value);
  };
  return html`<input ...${rest} value=${typed ?? value} onInput=${(event) => setTyped(event.target.value)} onChange=${done} />`;
}

/** Shows a component as the page. */
export function show(component) {
  const page = document.getElementById("page");
  page.replaceChildren();
  // Replaces the browser's icon for a missing picture: see `.missing` in base.css.
  const marked = (event) => event.target instanceof HTMLImageElement && event.target.classList.toggle("missing", event.type === "error");
  addEventListener("error", marked, true);
  addEventListener("load", marked, true);
  render(html`<${component} />`, page);
}
