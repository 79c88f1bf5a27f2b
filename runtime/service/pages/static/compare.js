// The page on which a person says which of two pictures is the better one.

import { html, show, useEffect, useLayoutEffect, useRef, useState } from "./ui.js";
import { ask } from "./api.js";
import { Dialog, Header, Notice, useKeys } from "./frame.js";
import { Pairs, pictureOf, shownSize } from "./pairs.js";
import { Summary } from "./summary.js";
import { count, plural } from "./words.js";
import { Zoom } from "./zoom.js";

const REASONS = ["I cannot judge this", "A picture is broken", "I do not want to see this"];
const NAME = "plaudit voter"; // where the browser keeps the name that was entered

function Compare() {
  const [state, setState] = useState({ current: null, done: false, fault: null });
  const [zoom, setZoom] = useState(false);
  const [skipping, setSkipping] = useState(false);
  const pairs = useRef(null);
  pairs.current ??= new Pairs(setState, localStorage.getItem(NAME) ?? "");
  const shownAt = useRef(performance.now());
  const { current, fault, done } = state;

  useEffect(() => {
    (async () => {
      const invite = new URLSearchParams(location.hash.slice(1)).get("invite");
      if (invite) {
        history.replaceState(null, "", location.pathname + location.search); // the invitation works once, and should not stay in the address
        await ask("/v1/compare/join", { invite }).catch((error) => setState((before) => ({ ...before, fault: error })));
      }
      await pairs.current.load();
    })();
  }, []);
  useLayoutEffect(() => {
    shownAt.current = performance.now();
  }, [current?.showing]);

  const vote = (choice, reason = null) => {
    if (!current || skipping) return;
    setZoom(false);
    pairs.current.vote(choice, reason, Math.round(performance.now() - shownAt.current) / 1000);
  };
  const [left, right, tie, bad] = ["left", "right", "tie", "both_bad"].map((choice) => () => vote(choice));
  const undo = () => pairs.current.undo();
  useKeys({
    ArrowLeft: left,
    1: left,
    ArrowRight: right,
    2: right,
    ArrowUp: tie,
    0: tie,
    ArrowDown: bad,
    b: bad,
    s: () => !zoom && current && setSkipping(true),
    u: undo,
    z: () => !zoom && current && setZoom(true),
  });

  return html`<${Header} page="compare" />
    <main id="main" class="compare">
      <${Standing} state=${state} />
      ${state.instructions && html`<details class="panel told" open><summary>How to choose</summary><p>${state.instructions}</p></details>`}
      ${fault && html`<${Fault} fault=${fault} again=${pairs.current.load} />`}
      ${!fault && !current && !done && html`<p class="quiet waiting" role="status">Loading the next pair…</p>`}
      ${
        done &&
        html`<${Notice} title="Nothing is left to compare">Thank you. You have seen all pairs for you. There may be more later.</${Notice}>`
      }
      ${
        current &&
        html`<h1 class="asked">${current.prompt ? html`Which is better for “<q>${current.prompt}</q>”?` : "Which is the better picture?"}</h1>
          <div class="pair">
            <${Side} side=${current.left} label="Left" keys=${["←", "1"]} onChoose=${left} />
            <${Side} side=${current.right} label="Right" keys=${["→", "2"]} onChoose=${right} />
          </div>
          <div class="row choices" role="group" aria-label="Other answers">
            <button onClick=${tie}>Equally good <kbd>↑</kbd> <kbd>0</kbd></button>
            <button onClick=${bad}>Both bad <kbd>↓</kbd> <kbd>b</kbd></button>
            <button onClick=${() => setSkipping(true)}>Skip… <kbd>s</kbd></button>
            <button onClick=${() => setZoom(true)}>Zoom <kbd>z</kbd></button>
            <button disabled=${!state.undoable} onClick=${undo}>Undo <kbd>u</kbd></button>
          </div>`
      }
      ${!current && state.undoable && html`<p class="row choices"><button onClick=${undo}>Undo <kbd>u</kbd></button></p>`}
      ${state.prompts && html`<${OwnPrompt} onBegin=${pairs.current.prompt} />`}
      <div class="below">
        <${Name}
          voter=${state.voter}
          onName=${(name) => {
            localStorage.setItem(NAME, name);
            pairs.current.rename(name);
          }}
        />
        ${fault?.status !== 404 && html`<${Summary} />`}
      </div>
    </main>
    ${zoom && current && html`<${Zoom} showing=${current} onClose=${() => setZoom(false)} onChoose=${vote} />`}
    ${
      skipping &&
      html`<${Skip}
        onClose=${() => setSkipping(false)}
        onSkip=${(reason) => {
          setSkipping(false);
          pairs.current.vote("skip", reason, Math.round(performance.now() - shownAt.current) / 1000);
        }}
      />`
    }`;
}

/** One picture; a click on it is a choice. */
function Side({ side, label, keys, onChoose }) {
  const [broken, setBroken] = useState(null); // the picture that could not be loaded
  return html`<div class="side">
    <button class="choose" aria-label=${`Choose the ${label.toLowerCase()} picture`} onClick=${onChoose}>
      ${
        broken === side.picture
          ? html`<span class="quiet">This picture cannot be shown. Skip the pair, or choose anyway.</span>`
          : html`<img
              key=${side.picture}
              src=${pictureOf(side, shownSize())}
              width=${side.width}
              height=${side.height}
              alt=${`${label} picture`}
              onError=${() => setBroken(side.picture)}
            />`
      }
    </button>
    <button class="main" onClick=${onChoose}>${label} is better ${keys.map((key) => html` <kbd>${key}</kbd>`)}</button>
  </div>`;
}

/** The person's number of votes, and how often they repeated their answers. */
function Standing({ state: { progress, agreement } }) {
  if (!progress) return null;
  const { votes, goal } = progress;
  return html`<div class="row standing">
    ${goal !== null && html`<progress max=${goal} value=${Math.min(votes, goal)} aria-label="Your votes"></progress>`}
    <span>${goal === null ? plural(votes, "vote", "votes") : `${count(votes)} of ${plural(goal, "vote", "votes")}`}</span>
    ${
      agreement.repeats > 0 &&
      html`<span class="quiet">You gave the same answer again for ${agreement.agreed} of ${plural(agreement.repeats, "repeated pair", "repeated pairs")}.</span>`
    }
  </div>`;
}

function Fault({ fault, again }) {
  if (fault.status === 404) {
    return html`<${Notice} title="No votes are collected here" fault=${true}>
      This service was started without --votes. With it, people say here which of two pictures is better.
    </${Notice}>`;
  }
  const title = fault.status === 403 ? "You need an invitation" : fault.status === 429 ? "Slowly, please" : "That did not work";
  return html`<${Notice} title=${title} fault=${true} again=${again}>${fault.message}</${Notice}>`;
}

function Skip({ onClose, onSkip }) {
  const [reason, setReason] = useState(REASONS[0]);
  const [own, setOwn] = useState("");
  const done = (event) => {
    event.preventDefault();
    onSkip(reason === null ? own.trim() || null : reason);
  };
  const option = (value, label, first = false) =>
    html`<label class="tick"><input type="radio" name="reason" autofocus=${first} checked=${reason === value} onChange=${() => setReason(value)} /> ${label}</label>`;
  return html`<${Dialog} label="Why skip this pair?" onClose=${onClose}>
    <form class="skipping" onSubmit=${done}>
      <h2>Why skip this pair?</h2>
      ${REASONS.map((value, i) => option(value, value, i === 0))} ${option(null, "Something else")}
      <input type="text" aria-label="Another reason" maxlength="500" value=${own} onFocus=${() => setReason(null)} onInput=${(event) => setOwn(event.target.value)} />
      <button class="main">Skip the pair</button>
    </form>
  </${Dialog}>`;
}

/** The form for a person's own prompt, if there is a generator. */
function OwnPrompt({ onBegin }) {
  const [text, setText] = useState("");
  const [busy, setBusy] = useState(false);
  const begin = async (event, prompt) => {
    event.preventDefault();
    setBusy(true);
    await onBegin(prompt);
    setBusy(false);
  };
  return html`<form class="panel own" onSubmit=${(event) => begin(event, text.trim())}>
    <label>
      Pictures for a prompt of your own
      <input type="text" maxlength="2000" required value=${text} placeholder="a lighthouse in a storm" onInput=${(event) => setText(event.target.value)} />
    </label>
    <button class="main" disabled=${busy || !text.trim()}>${busy ? "Making pictures…" : "Begin"}</button>
    <button type="button" disabled=${busy} onClick=${(event) => begin(event, null)}>Back to the given pairs</button>
  </form>`;
}

function Name({ voter, onName }) {
  const [name, setName] = useState(null);
  if (voter === undefined) return null;
  if (name === null) {
    const shown = voter === "anonymous" ? "without a name" : html`as <strong>${voter}</strong>`;
    return html`<p class="quiet">You vote ${shown}. <button class="link" onClick=${() => setName("")}>Change</button></p>`;
  }
  const done = (event) => {
    event.preventDefault();
    onName(name.trim());
    setName(null);
  };
  return html`<form class="row" onSubmit=${done}>
    <label>Your name <input type="text" maxlength="60" value=${name} onInput=${(event) => setName(event.target.value)} /></label>
    <button>Use it</button>
  </form>`;
}

show(Compare);
