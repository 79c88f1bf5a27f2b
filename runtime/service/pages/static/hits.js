// Hits as tiles, which arrow keys move through.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { thumbnail } from "./api.js";
import { Bar } from "./frame.js";
import { counted, decimals, percent, titleOf } from "./words.js";

/** `onOpen(i)` shows a hit large; `onLike(hit, side)` searches with it. */
export function Grid({ hits, searched, onOpen, onLike, onCopy }) {
  const grid = useRef(null);
  const [at, setAt] = useState(0);
  const last = hits.length - 1;
  useEffect(() => setAt((before) => Math.min(before, last)), [last]);

  const go = (to) => {
    const next = Math.min(last, Math.max(0, to));
    setAt(next);
    grid.current.children[next]?.querySelector(".open")?.focus();
  };
  const perRow = () => {
    const tiles = [...grid.current.children];
    const below = tiles.findIndex((tile) => tile.offsetTop > tiles[0].offsetTop);
    return below < 0 ? tiles.length : below;
  };
  const pressed = (event) => {
    if (event.target.className !== "open") return;
    const at = [...grid.current.children].indexOf(event.target.closest("li")); // not the state, which may not be up to date yet
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow(), ArrowDown: perRow(), Home: -at, End: last - at };
    if (event.key in steps) go(at + steps[event.key]);
    else if (event.key === "m") onLike(hits[at], "like");
    else if (event.key === "l") onLike(hits[at], "dislike");
    else if (event.key === "c" && !event.ctrlKey && !event.metaKey) onCopy(hits[at]);
    else return;
    event.preventDefault();
  };
  // If nothing else has the focus, an arrow key moves it to the hits.
  useLayoutEffect(() => {
    const enter = (event) => {
      const free = event.target === document.body && !document.querySelector("dialog[open]");
      if (free && ["ArrowDown", "ArrowRight"].includes(event.key)) {
        event.preventDefault();
        go(at);
      }
    };
    addEventListener("keydown", enter);
    return () => removeEventListener("keydown", enter);
  });

  return html`<ul class="grid" ref=${grid} onKeyDown=${pressed}>
    ${hits.map(
      (hit, i) => html`<li key=${hit.id}>
        <button
          class="open"
          tabindex=${i === at ? 0 : -1}
          aria-label=${`${titleOf(hit)}: show large`}
          title="Enter shows it large; m: more like this; l: less; c: copy its path"
          onFocus=${() => setAt(i)}
          onClick=${() => onOpen(i)}
        >
          <img src=${thumbnail(hit, 256)} alt="" loading="lazy" decoding="async" />
        </button>
        <div class="said-of">
          <strong title=${titleOf(hit)}>${titleOf(hit)}</strong>
          ${
            searched &&
            hit.similarity !== undefined &&
            html`<${Bar} kind="similarity" label="similar" value=${hit.similarity} text=${decimals(hit.similarity)} />`
          }
          <${Bar} kind="popularity" label="popular" value=${hit.popularity} text=${percent(hit.percentile, 0)} />
          <small>${counted(hit)}</small>
          <span class="row acts">
            <button aria-label=${`More like ${titleOf(hit)}`} title="More like this (m)" onClick=${() => onLike(hit, "like")}>+</button>
            <button aria-label=${`Less like ${titleOf(hit)}`} title="Less like this (l)" onClick=${() => onLike(hit, "dislike")}>−</button>
            <button aria-label=${`Copy the path of ${titleOf(hit)}`} title="Copy path (c)" onClick=${() => onCopy(hit)}>copy</button>
          </span>
        </div>
      </li>`,
    )}
  </ul>`;
}
