// Preact, its hooks and templates, which all pages use. Text in a template is never parsed as HTML.

import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
export const html = htm.bind(h);

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
