// Both pictures at full size, side by side. Zooming and moving apply to both.

import { html, useEffect, useRef, useState } from "./ui.js";
import { Dialog, useKeys } from "./frame.js";
import { pictureOf } from "./pairs.js";

const MOST = 16;
const STEP = 1.4;
const FIT = { scale: 1, x: 0, y: 0 }; // x and y: how far the middle is moved, as shares of the box

/** The view after zooming around a point, which is given as shares of the box from its middle. */
export function zoomed(view, factor, x = 0, y = 0) {
  const scale = Math.min(MOST, Math.max(1, view.scale * factor));
  const by = scale / view.scale;
  return kept({ scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by });
}

/** Limits a view, so that no picture is moved out of its box. */
function kept({ scale, x, y }) {
  const most = (scale - 1) / 2;
  const within = (value) => Math.min(most, Math.max(-most, value));
  return { scale, x: within(x), y: within(y) };
}

export function Zoom({ showing, onClose, onChoose }) {
  const [view, setView] = useState(FIT);
  const change = (factor) => setView((before) => zoomed(before, factor));
  const move = (x, y) => setView((before) => kept({ ...before, x: before.x + x, y: before.y + y }));
  useKeys({ "+": () => change(STEP), "=": () => change(STEP), "-": () => change(1 / STEP), f: () => setView(FIT), z: onClose });
  const sides = [
    ["left", "1", "Left"],
    ["right", "2", "Right"],
  ];
  return html`<${Dialog} label="Both pictures at full size" kind="zoom" onClose=${onClose}>
    <p class="row">
      <button onClick=${() => change(STEP)} aria-label="Larger">+ <kbd>+</kbd></button>
      <button onClick=${() => change(1 / STEP)} aria-label="Smaller">− <kbd>-</kbd></button>
      <button onClick=${() => setView(FIT)}>Fit <kbd>f</kbd></button>
      <output aria-live="off">${Math.round(100 * view.scale)} %</output>
      <span class="quiet">You can also use the wheel and drag. Both pictures move together.</span>
    </p>
    <div class="both">
      ${sides.map(
        ([name, key, label]) => html`<div key=${name}>
          <${Pane} side=${showing[name]} label=${label} view=${view} setView=${setView} move=${move} />
          <button onClick=${() => onChoose(name)}>${label} is better <kbd>${key}</kbd></button>
        </div>`,
      )}
    </div>
  </${Dialog}>`;
}

function Pane({ side, label, view, setView, move }) {
  const pane = useRef(null);
  useEffect(() => {
    // Not set by Preact, because the listener must not be passive to prevent scrolling.
    const wheel = (event) => {
      event.preventDefault();
      const box = pane.current.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width - 0.5;
      const y = (event.clientY - box.top) / box.height - 0.5;
      setView((before) => zoomed(before, 1.002 ** -event.deltaY, x, y));
    };
    const element = pane.current;
    element.addEventListener("wheel", wheel, { passive: false });
    return () => element.removeEventListener("wheel", wheel);
  }, []);
  const dragged = (event) => {
    if (!event.currentTarget.hasPointerCapture(event.pointerId)) return;
    const box = pane.current.getBoundingClientRect();
    move(event.movementX / box.width, event.movementY / box.height);
  };
  const transform = `translate(${100 * view.x}%, ${100 * view.y}%) scale(${view.scale})`;
  return html`<div
    class="pane"
    ref=${pane}
    onPointerDown=${(event) => event.currentTarget.setPointerCapture(event.pointerId)}
    onPointerMove=${dragged}
  >
    <img src=${pictureOf(side, "full")} alt=${`${label} picture at full size`} draggable=${false} style=${{ transform }} />
  </div>`;
}
