// The search page: the query at the top, weights and filters at the side, hits below.

import { html, show, useEffect, useMemo, useRef, useState } from "./ui.js";
import { ask, latestOnly } from "./api.js";
import { Chips, SearchBar, usePictures } from "./bar.js";
import { Filters, Groups, howMany } from "./filters.js";
import { Header, Notice, Panel, Viewer, useKeys, useSaid } from "./frame.js";
import { Grid } from "./hits.js";
import { DEFAULTS, chip, find, fromAddress, toAddress } from "./query.js";
import { copy, csv, percent, plural, save, titleOf } from "./words.js";

const MOST = 1000; // the most hits of a query
const CUTS = [
  [0, "show all"],
  [50, "most similar half"],
  [90, "most similar 10 %"],
  [99, "most similar 1 %"],
  [99.9, "most similar 0.1 %"],
];

function Search() {
  const now = useRef(null); // the current query, even if the page was not drawn again yet
  now.current ??= fromAddress(location.search);
  const [query, setQuery] = useState(now.current);
  const [about, setAbout] = useState(null);
  const [found, setFound] = useState({ hits: null, fault: null, for: null });
  const [busy, setBusy] = useState(false);
  const [open, setOpen] = useState(null);
  const [said, say] = useSaid();
  const input = useRef(null);

  const run = useMemo(
    () =>
      latestOnly(async (wish, superseded) => {
        setBusy(true);
        try {
          const hits = await find(wish);
          if (!superseded()) setFound({ hits, fault: null, for: wish });
        } catch (fault) {
          if (!superseded()) setFound({ hits: null, fault, for: wish });
        }
        setBusy(false);
      }),
    [],
  );

  /** Search again with these parts of the query changed. With `step` it is a step of the browser's history. */
  const change = (parts, step = true) => {
    now.current = { ...now.current, ...(step ? { k: DEFAULTS.k } : {}), ...parts };
    const to = toAddress(now.current);
    if (to !== location.search.slice(1)) history[step ? "pushState" : "replaceState"](null, "", to ? `?${to}` : "./");
    setQuery(now.current);
    run(now.current);
  };
  /** Add a like or a dislike. If it was made of the words in the bar, it replaces them. */
  const add = (one, words = now.current.words) => {
    const same = (other) => other.kind === one.kind && other.value === one.value && other.side === one.side;
    if (!now.current.chips.some(same)) change({ chips: [...now.current.chips, one], words });
  };

  useEffect(() => {
    ask("/v1/catalogue").then(setAbout, (fault) => setAbout({ fault, columns: [] }));
    run(query);
    const back = () => {
      now.current = fromAddress(location.search);
      setQuery(now.current);
      run(now.current);
    };
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  usePictures((side, kind, value, label, picture) => add(chip(side, kind, value, label, { picture })));
  const like = (hit, side) => {
    add(chip(side, "id", hit.id, titleOf(hit), { picture: hit.thumbnail }));
    say(side === "like" ? "Searching for more like it." : "Searching for less like it.");
  };
  useKeys({
    "/": () => {
      if (document.querySelector("dialog[open]")) return false;
      input.current.focus();
      input.current.select();
      return true;
    },
  });
  const copied = async (hit) => {
    await copy(hit.key);
    say("The path is on the clipboard.");
  };
  const { hits, fault } = found;
  const searched = Boolean(query.words.trim() || query.chips.length);
  const export_ = (name, text, type) => {
    save(name, text, type);
    say(`${plural(hits.length, "picture", "pictures")} written to ${name}.`);
  };

  return html`<${Header} page="search" />
    <main id="main" class="search">
      <${SearchBar} input=${input} words=${query.words} about=${about} onSearch=${(words) => change({ words })} onAdd=${add} />
      <${Chips} chips=${query.chips} onChange=${(chips, step) => change({ chips }, step)} />
      <div class="columns">
        <aside aria-label="How hits are weighed and filtered">
          <${Weighing} query=${query} onChange=${change} searched=${searched} />
          <${Panel} label="Filters" badge=${howMany(query.filters)}>
            <${Groups}
              columns=${about?.columns ?? []}
              groupBy=${query.groupBy}
              perGroup=${query.perGroup}
              onChange=${(groupBy, perGroup) => change({ groupBy, perGroup })}
            />
            <${Filters} columns=${about?.columns ?? []} filters=${query.filters} onChange=${(filters) => change({ filters })} />
          </${Panel}>
        </aside>
        <section aria-label="Hits" aria-busy=${busy}>
          <div class="row over">
            <p class="quiet" role="status">${status(hits, fault, searched, about)}</p>
            ${
              hits?.length > 0 &&
              html`<span class="row">
                <button onClick=${() => export_("hits.csv", csv(hits), "text/csv")}>CSV</button>
                <button onClick=${() => export_("hits.json", JSON.stringify(hits, null, 1), "application/json")}>JSON</button>
              </span>`
            }
          </div>
          ${
            fault &&
            html`<${Notice} title=${fault.status === 404 ? "There is no catalogue" : "That did not work"} fault=${true} again=${() => run(query)}>
              ${fault.status === 404 ? "This service was started without --catalogue, so there is nothing to search." : fault.message}
            </${Notice}>`
          }
          ${
            hits?.length === 0 &&
            html`<${Notice} title="Nothing was found">
              No picture meets the filters. Take some away, lower the least popularity, or show less similar pictures too.
            </${Notice}>`
          }
          ${
            hits?.length > 0 &&
            html`<${Grid} hits=${hits} searched=${searched} onOpen=${setOpen} onLike=${like} onCopy=${copied} />
              ${
                hits.length >= query.k &&
                query.k < MOST &&
                html`<p class="more">
                  <button onClick=${() => change({ k: Math.min(MOST, 2 * query.k) }, false)}>Show more</button>
                </p>`
              }`
          }
        </section>
      </div>
    </main>
    ${
      open !== null &&
      html`<${Viewer}
        hit=${hits?.[open]}
        at=${open}
        total=${hits?.length ?? 0}
        onMove=${setOpen}
        onClose=${() => setOpen(null)}
        actions=${(hit) => html`<button onClick=${() => (setOpen(null), like(hit, "like"))}>More like this</button>
          <button onClick=${() => (setOpen(null), like(hit, "dislike"))}>Less like this</button>`}
      />`
    }
    ${said}`;
}

function status(hits, fault, searched, about) {
  if (fault) return "";
  if (!hits) return "Searching…";
  if (!hits.length) return "";
  const all = about?.pictures ? ` of ${plural(about.pictures, "picture", "pictures")}` : "";
  return searched ? `The ${plural(hits.length, "best hit", "best hits")}${all}` : `The ${hits.length} most popular${all}`;
}

/** The sliders for the weight of popularity and for limits. */
function Weighing({ query, onChange, searched }) {
  const slider = (name, label, max, step, shown) =>
    html`<label class="field">
      <span class="row over"><span>${label}</span><span>${shown(query[name])}</span></span>
      <input
        type="range"
        min="0"
        max=${max}
        step=${step}
        value=${query[name]}
        disabled=${!searched}
        onInput=${(event) => onChange({ [name]: Number(event.target.value) }, false)}
      />
    </label>`;
  return html`<section class="panel weighing" aria-label="Weighing">
    ${slider("popularity", "Popularity weight", 1, 0.01, (x) => x.toFixed(2))}
    ${slider("least", "Least popularity", 99, 1, (x) => percent(x, 0))}
    <label class="field">
      Similarity
      <select
        value=${query.relevant}
        disabled=${!searched}
        onChange=${(event) => onChange({ relevant: Number(event.target.value) })}
      >
        ${CUTS.map(([cut, label]) => html`<option value=${cut}>${label}</option>`)}
      </select>
    </label>
    <label class="tick">
      <input
        type="checkbox"
        checked=${query.distinct}
        disabled=${!searched}
        onChange=${(event) => onChange({ distinct: event.target.checked })}
      />
      Hide near-duplicates
    </label>
    ${!searched && html`<p class="quiet">These apply once there is a query.</p>`}
  </section>`;
}

show(Search);
