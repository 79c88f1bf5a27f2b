// Many pictures as tiles. Only visible tiles exist, so that a catalogue of any size scrolls equally fast.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";

const GAP = 13; // pixels between tiles
const WIDTH = 176; // least width of a tile, if there is room
const NARROW = 720; // in windows narrower than this there are two tiles in a row
const OVERSCAN = 2; // rows beyond the visible edges that also exist
const TALLEST = 15_000_000; // the most pixels that all browsers can scroll

/** The layout of tiles for a given width. */
export function layout(width, total, textHeight, isNarrow) {
  const perRow = isNarrow ? 2 : Math.max(2, Math.floor((width + GAP) / (WIDTH + GAP)));
  const side = Math.floor((width - GAP * (perRow - 1)) / perRow);
  const rowHeight = side + textHeight + GAP;
  const rows = Math.min(Math.ceil(total / perRow), Math.floor(TALLEST / rowHeight));
  return { perRow, side, rowHeight, rows, shown: Math.min(total, rows * perRow) };
}

/**
  * `tile(i, focusable)` draws tile i of `total`. `onRange(first, last)` is called with the tiles that are or soon will be visible.
 * `textHeight` is the height of a tile's text in pixels. Arrow keys move between tiles.
 */
export function Windowed({ total, textHeight, tile, onRange, label }) {
  const box = useRef(null);
  const [width, setWidth] = useState(0);
  const [rows, setRows] = useState([0, 0]);
  const [at, setAt] = useState(0);
  const wanted = useRef(null); // the tile to focus once it exists
  const { perRow, side, rowHeight, rows: all, shown } = layout(width || 1, total, textHeight, innerWidth < NARROW);

  useLayoutEffect(() => {
    const measured = () => box.current && setWidth(box.current.clientWidth);
    measured();
    const observer = new ResizeObserver(measured);
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);

  useEffect(() => {
    const look = () => {
      if (!box.current) return; // the page shows another ranking by now
      const top = -box.current.getBoundingClientRect().top;
      const first = Math.max(0, Math.floor(top / rowHeight) - OVERSCAN);
      const last = Math.min(all, Math.ceil((top + innerHeight) / rowHeight) + OVERSCAN);
      setRows((before) => (before[0] === first && before[1] === last ? before : [first, Math.max(first, last)]));
    };
    look();
    addEventListener("scroll", look, { passive: true });
    addEventListener("resize", look);
    return () => {
      removeEventListener("scroll", look);
      removeEventListener("resize", look);
    };
  }, [rowHeight, all]);

  const [first, last] = [rows[0] * perRow, Math.min(shown, rows[1] * perRow)];
  useEffect(() => {
    if (last > first) onRange(first, last);
  }, [first, last, total]);

  useEffect(() => {
    if (wanted.current === null) return;
    const found = box.current.querySelector(`[data-i="${wanted.current}"] .open`);
    if (!found) return;
    wanted.current = null;
    found.focus({ preventScroll: true });
  });

  const pressed = (event) => {
    if (event.target.className !== "open") return;
    const at = wanted.current ?? Number(event.target.closest("li").dataset.i); // the state may not be up to date yet
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow, Home: -at, End: shown - 1 - at };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const to = Math.min(shown - 1, Math.max(0, at + steps[event.key]));
    const top = box.current.getBoundingClientRect().top + scrollY + Math.floor(to / perRow) * rowHeight;
    if (top < scrollY) scrollTo({ top: top - GAP });
    else if (top + rowHeight > scrollY + innerHeight) scrollTo({ top: top + rowHeight - innerHeight });
    wanted.current = to;
    setAt(to);
  };
  const focusable = at >= first && at < last ? at : first;

  return html`<div ref=${box} class="windowed" style=${{ height: `${all * rowHeight}px` }}>
    <ul
      class="grid"
      aria-label=${label}
      onKeyDown=${pressed}
      style=${{
        gap: `${GAP}px`,
        gridTemplateColumns: `repeat(${perRow}, ${side}px)`,
        gridAutoRows: `${rowHeight - GAP}px`,
        transform: `translateY(${rows[0] * rowHeight}px)`,
      }}
    >
      ${Array.from({ length: Math.max(0, last - first) }, (_, n) => {
        const i = first + n;
        return html`<li key=${i} data-i=${i} aria-setsize=${total} aria-posinset=${i + 1} onFocusIn=${() => setAt(i)}>
          ${tile(i, i === focusable, side)}
        </li>`;
      })}
    </ul>
  </div>`;
}
