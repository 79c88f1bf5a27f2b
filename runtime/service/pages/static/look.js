// The page that ranks a whole catalogue by a measure, or by the difference of two measures.

import { Field, html, show, useEffect, useMemo, useRef, useState } from "./ui.js";
import { address, ask, latestOnly, thumbnail } from "./api.js";
import { Filters, Groups, NO_FILTERS, howMany, whereOf } from "./filters.js";
import { Header, Notice, Panel, Viewer, useSaid } from "./frame.js";
import { filtersOf } from "./query.js";
import { Windowed } from "./windowed.js";
import { counted, csv, number, percent, plural, save, titleOf } from "./words.js";

const CHUNK = 100; // number of pictures in a request
const FIRSTS = 8; // number of first pictures shown for each of two measures
const MOST = 1000; // the most pictures that are written to a file
const TEXT_HEIGHT = 116; // height of a tile's text in pixels
const START = { by: "popularity", against: null, order: "highest", prompt: "", groupBy: null, perGroup: 1, filters: NO_FILTERS };

/** Common rankings, as far as the catalogue has their measures. */
function presets(measures, heads) {
  const score = heads[0] ?? ["table: score", "score"].find((name) => measures.includes(name));
  const ofHead = heads[0] === "head: score" ? "head: uncertainty" : `${heads[0]}_uncertainty`;
  const unsure = [ofHead, "table: uncertainty", "uncertainty"].find((name) => measures.includes(name));
  const all = [
    ["Most popular", { by: "popularity", against: null, order: "highest" }],
    score && ["Highest score", { by: score, against: null, order: "highest" }],
    score && ["Undiscovered", { by: score, against: "popularity", order: "highest" }, "A high score, and little popularity yet"],
    score && ["Overrated", { by: score, against: "popularity", order: "lowest" }, "Popular, and a low score"],
    unsure && ["Least certain", { by: unsure, against: null, order: "highest" }],
    heads.length > 1 && ["Two heads", { by: heads[0], against: heads[1], order: "apart" }, "Two heads side by side, where they disagree most"],
  ];
  return all.filter(Boolean);
}

function fromAddress(search) {
  const params = new URLSearchParams(search);
  const [, perGroup, groupBy] = /^(\d{1,4}):(.+)$/.exec(params.get("group") ?? "") ?? [];
  const order = params.get("order");
  return {
    by: params.get("by") || START.by,
    against: params.get("against") || null,
    order: ["highest", "lowest", "apart"].includes(order) ? order : START.order,
    prompt: params.get("prompt") ?? "",
    groupBy: groupBy ?? null,
    perGroup: Math.min(1000, Math.max(1, Number(perGroup) || 1)),
    filters: filtersOf(params.get("filters")),
  };
}

function toAddress(wish) {
  const params = new URLSearchParams();
  for (const name of ["by", "against", "order", "prompt"]) {
    if (wish[name] && wish[name] !== START[name]) params.set(name, wish[name]);
  }
  if (wish.groupBy) params.set("group", `${wish.perGroup}:${wish.groupBy}`);
  if (whereOf(wish.filters)) params.set("filters", JSON.stringify(wish.filters));
  return params.toString();
}

const bodyOf = (wish) => ({
  by: wish.by,
  against: wish.against,
  order: wish.order === "apart" && !wish.against ? "highest" : wish.order,
  prompt: wish.prompt.trim() || null,
  where: whereOf(wish.filters),
  ...(wish.groupBy ? { group_by: wish.groupBy, per_group: wish.perGroup } : {}),
});

function Look() {
  const [wish, setWish] = useState(() => fromAddress(location.search));
  const [about, setAbout] = useState(null);
  const [ranking, setRanking] = useState({ total: null, correlation: null, fault: null, of: null });
  const [, redraw] = useState(0);
  const [open, setOpen] = useState(null);
  const [report, setReport] = useState(false);
  const [said, say] = useSaid();
  const chunks = useRef(new Map()); // chunks of the current ranking, by number
  const latest = useRef(wish);
  latest.current = wish;

  /** Request a part of a ranking, unless it is there or was requested already. */
  const fetchChunk = async (number_, of) => {
    if (chunks.current.has(number_)) return;
    const mine = chunks.current;
    mine.set(number_, null);
    try {
      const { total, correlation, hits } = await ask("/v1/browse", { ...bodyOf(of), offset: CHUNK * number_, k: CHUNK });
      mine.set(number_, hits);
      if (mine === chunks.current) setRanking({ total, correlation, fault: null, of });
    } catch (fault) {
      mine.delete(number_);
      if (mine === chunks.current) setRanking({ total: null, correlation: null, fault, of });
    }
    redraw((n) => n + 1);
  };
  const run = useMemo(
    () =>
      latestOnly(async (next) => {
        chunks.current = new Map();
        await fetchChunk(0, next);
      }),
    [],
  );
  const change = (parts) => {
    const next = { ...latest.current, ...parts };
    latest.current = next;
    setWish(next);
    const to = toAddress(next);
    if (to !== location.search.slice(1)) history.pushState(null, "", to ? `?${to}` : "./look");
    run(next);
  };
  useEffect(() => {
    ask("/v1/catalogue").then(setAbout, (fault) => setAbout({ fault, columns: [], measures: [] }));
    run(wish);
    const back = () => {
      setWish(fromAddress(location.search));
      run(fromAddress(location.search));
    };
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  const hitAt = (i) => chunks.current.get(Math.floor(i / CHUNK))?.[i % CHUNK];
  const seen = (first, last) => {
    for (let n = Math.floor(first / CHUNK); n <= Math.floor((last - 1) / CHUNK); n++) fetchChunk(n, latest.current);
  };
  const written = async () => {
    const { hits } = await ask("/v1/browse", { ...bodyOf(wish), k: MOST });
    const flat = hits.map(({ measures, places, gap, ...hit }) => {
      const percentiles = Object.entries(places).map(([name, place]) => [`percentile of ${name}`, place]);
      return { ...hit, metadata: { ...hit.metadata, ...measures, ...Object.fromEntries(percentiles), gap } };
    });
    save("ranking.csv", csv(flat), "text/csv");
    say(`${plural(hits.length, "picture", "pictures")} written to ranking.csv.`);
  };
  const { total, correlation, fault } = ranking;
  const measures = about?.measures ?? [];
  const tile = (i, focusable) => {
    const hit = hitAt(i);
    if (!hit) return html`<div class="awaited"></div>`;
    return html`<button class="open" tabindex=${focusable ? 0 : -1} aria-label=${`${i + 1}: ${titleOf(hit)}, show large`} onClick=${() => setOpen(i)}>
        <img src=${thumbnail(hit, 256)} alt="" loading="lazy" decoding="async" />
      </button>
      <div class="said-of">
        <strong title=${titleOf(hit)}>${i + 1}. <bdi>${titleOf(hit)}</bdi></strong>
        <${Figures} hit=${hit} />
        <small>${counted(hit)}</small>
      </div>`;
  };
  const viewed = open === null ? null : hitAt(open);

  return html`<${Header} page="look" />
    <main id="main" class="look">
      <h1 class="skip">The catalogue, ranked</h1>
      <div class="row presets" role="group" aria-label="Rankings">
        ${presets(measures, about?.heads ?? []).map(
          ([label, parts, title]) =>
            html`<button
              title=${title}
              aria-pressed=${Object.entries(parts).every(([name, value]) => wish[name] === value)}
              onClick=${() => change(parts)}
            >
              ${label}
            </button>`,
        )}
        ${about?.report && html`<button aria-expanded=${report} onClick=${() => setReport(!report)}>Evaluation</button>`}
      </div>
      ${report && html`<iframe class="report" sandbox="" title="The report of the evaluation" src=${address("/v1/report").href}></iframe>`}
      <div class="columns">
        <aside aria-label="How pictures are ranked and filtered">
          <${Ranking} wish=${wish} about=${about} onChange=${change} />
          <${Panel} label="Filters" badge=${howMany(wish.filters)}>
            <${Groups}
              columns=${about?.columns ?? []}
              groupBy=${wish.groupBy}
              perGroup=${wish.perGroup}
              onChange=${(groupBy, perGroup) => change({ groupBy, perGroup })}
            />
            <${Filters} columns=${about?.columns ?? []} filters=${wish.filters} onChange=${(filters) => change({ filters })} />
          </${Panel}>
        </aside>
        <section aria-label="Ranking">
          <div class="row over">
            <p class="quiet" role="status">${total === null ? (fault ? "" : "Ranking the catalogue…") : plural(total, "picture", "pictures")}</p>
            ${total > 0 && html`<button onClick=${written}>CSV</button>`}
          </div>
          ${
            fault &&
            html`<${Notice} title=${fault.status === 404 ? "There is no catalogue" : "That did not work"} fault=${true} again=${() => run(wish)}>
              ${fault.status === 404 ? html`This service was started without <code>--catalogue</code>, so there is nothing to rank.` : fault.message}
            </${Notice}>`
          }
          ${total > 0 && wish.against && html`<${Sides} wish=${wish} correlation=${correlation} />`}
          ${total === 0 && html`<${Notice} title="Nothing to show">No picture meets the filters and has a value of this measure.</${Notice}>`}
          ${
            total > 0 &&
            html`<${Windowed} label="Pictures in order" total=${total} textHeight=${TEXT_HEIGHT} tile=${tile} onRange=${seen} key=${JSON.stringify(bodyOf(wish))} />`
          }
        </section>
      </div>
    </main>
    ${
      open !== null &&
      html`<${Viewer}
        hit=${viewed}
        at=${open}
        total=${total}
        onMove=${(i) => (setOpen(i), seen(i, i + 1))}
        onClose=${() => setOpen(null)}
        figures=${Object.keys(viewed?.measures ?? {}).map((name) => [name, (hit) => number(hit.measures[name])])}
        actions=${(hit) => html`<a class="button" href=${address(`/?like=${encodeURIComponent(`id:1:${hit.id}:${titleOf(hit)}`)}`).href}>Search like this</a>`}
      />`
    }
    ${said}`;
}

/** The percentile of a value, if it is known, as text. It makes two measures comparable. */
const placed = (place) => (place === undefined || place === null ? "" : html` <small>${percent(place, 0)}</small>`);

/** Two measures side by side: the first pictures of each, and their rank correlation. */
function Sides({ wish, correlation }) {
  const [firsts, setFirsts] = useState([null, null]);
  const asked = JSON.stringify({ ...bodyOf({ ...wish, groupBy: null }), order: "highest", against: null, k: FIRSTS });
  useEffect(() => {
    const going = new AbortController();
    setFirsts([null, null]);
    [wish.by, wish.against].forEach(async (by, side) => {
      try {
        const { hits } = await ask("/v1/browse", { ...JSON.parse(asked), by }, { signal: going.signal });
        setFirsts((before) => before.map((one, i) => (i === side ? hits : one)));
      } catch {
        // The ranking below sends the same request, and shows the error.
      }
    });
    return () => going.abort();
  }, [asked, wish.against]);
  const alike =
    correlation === null ? "One of the two is the same for all pictures." : `Rank correlation ${correlation.toFixed(2)}: ${alikeness(correlation)}.`;
  return html`<section class="sides" aria-label="Two measures side by side">
    ${[wish.by, wish.against].map(
      (name, side) => html`<div>
        <h2>First by ${name}</h2>
        <ol>
          ${(firsts[side] ?? []).map((hit) => html`<li key=${hit.id}><img src=${thumbnail(hit, 128)} alt=${titleOf(hit)} title=${`${titleOf(hit)}: ${number(hit.measures[name])}`} /></li>`)}
        </ol>
      </div>`,
    )}
    <p class="quiet">${alike}${wish.order === "apart" ? " Below, the pictures on which they disagree most." : ""}</p>
  </section>`;
}

/** A rank correlation in words. */
function alikeness(correlation) {
  if (Math.abs(correlation) < 0.2) return "the two rank pictures almost independently";
  const how = Math.abs(correlation) > 0.8 ? "nearly" : Math.abs(correlation) > 0.5 ? "much" : "a little";
  return correlation > 0 ? `the two rank pictures ${how} alike` : `the two rank pictures ${how} the other way round`;
}

/** The measures of one picture, and their difference. */
function Figures({ hit }) {
  const lines = Object.entries(hit.measures).filter(([name]) => name !== "popularity");
  const short = lines.map(([name]) => name.replace(/^(head|beside|table): /, "")); // a tile is narrow
  const label = (i) => (new Set(short).size === short.length ? short[i] : lines[i][0]);
  return html`<dl class="figures">
    <div><dt>popularity</dt><dd>${percent(hit.percentile, 0)}</dd></div>
    ${lines.map(([name, value], i) => html`<div><dt title=${name}>${label(i)}</dt><dd>${number(value)}${placed(hit.places[name])}</dd></div>`)}
    ${
      hit.gap !== null &&
      html`<div><dt>apart</dt><dd class=${hit.gap < 0 ? "down" : "up"}>${hit.gap < 0 ? "−" : "+"}${Math.abs(hit.gap).toFixed(0)} points</dd></div>`
    }
  </dl>`;
}

/** The options of the ranking. */
function Ranking({ wish, about, onChange }) {
  const measures = about?.measures ?? [];
  const ofHead = [wish.by, wish.against].some((name) => /^(head|beside): /.test(name ?? ""));
  const select = (label, value, options, changed) =>
    html`<label class="field">
      ${label}
      <select value=${value} onChange=${(event) => changed(event.target.value)}>
        ${options.map(([name, words]) => html`<option value=${name}>${words}</option>`)}
      </select>
    </label>`;
  const same = [...new Set([...measures, wish.by, ...(wish.against ? [wish.against] : [])])].map((name) => [name, name]);
  const orders = wish.against
    ? [
        ["highest", "first ranks it higher"],
        ["lowest", "second ranks it higher"],
        ["apart", "where they disagree most"],
      ]
    : [
        ["highest", "highest first"],
        ["lowest", "lowest first"],
      ];
  return html`<section class="panel ranking" aria-label="By what pictures are ranked">
    ${select("Rank by", wish.by, same, (by) => onChange({ by }))}
    ${select("Beside", wish.against ?? "", [["", "nothing"], ...same], (against) => onChange({ against: against || null }))}
    ${select("Order", wish.order, orders, (order) => onChange({ order }))}
    ${
      ofHead &&
      about?.head_reads_text &&
      html`<label class="field">
        Prompt that the head scores under
        <${Field}
          type="text"
          value=${wish.prompt}
          maxlength="2000"
          placeholder=${about.has_prompts ? "each picture's own" : "such as: a logo"}
          onDone=${(prompt) => onChange({ prompt })}
        />
      </label>`
    }
    ${about?.head_unreadable && html`<p class="quiet">Without a score by the head: ${about.head_unreadable}.</p>`}
  </section>`;
}

show(Look);
