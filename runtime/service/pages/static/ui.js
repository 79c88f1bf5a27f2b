// What every page is written with: Preact, its hooks, and templates. Text in a template is text: it never becomes HTML.

import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
export const html = htm.bind(h);

/** Shows a component as the page. */
export function show(component) {
  const page = document.getElementById("page");
  page.replaceChildren();
  // In place of the browser's sign for a picture that is not there: see `.missing` in base.css.
  const marked = (event) => event.target instanceof HTMLImageElement && event.target.classList.toggle("missing", event.type === "error");
  addEventListener("error", marked, true);
  addEventListener("load", marked, true);
  render(html`<${component} />`, page);
}
