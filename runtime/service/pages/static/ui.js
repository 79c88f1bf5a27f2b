// What every page is written with: Preact, its hooks, and templates. Text in a template is text: it never becomes HTML.

import { h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
export const html = htm.bind(h);

/** Shows a component as the page. */
export function show(component) {
  const page = document.getElementById("page");
  page.replaceChildren();
  render(html`<${component} />`, page);
}
