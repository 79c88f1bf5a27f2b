// The search bar: words, and pictures that are dropped, pasted, chosen or linked, with chips for likes and dislikes.

import { Field, html, useEffect, useRef, useState } from "./ui.js";
import { address } from "./api.js";
import { chip } from "./query.js";

const isLink = (text) => /^https?:\/\/\S+$/i.test(text.trim());

export function SearchBar({ input, words, about, onSearch, onAdd }) {
  const [text, setText] = useState(words);
  const file = useRef(null);
  useEffect(() => setText(words), [words]);
  const add = (side) => {
    const given = text.trim();
    if (!given) return;
    setText("");
    onAdd(chip(side, isLink(given) ? "url" : "text", given), "");
  };
  const search = (event) => {
    event.preventDefault();
    if (isLink(text)) add("like");
    else onSearch(text.trim());
  };
  const readsText = about?.reads_text !== false;
  return html`<form class="bar-top" role="search" onSubmit=${search}>
    <input
      ref=${input}
      type="search"
      dir="auto"
      aria-label="What to search for"
      placeholder=${readsText ? "Words, or a link to a picture" : "A link to a picture"}
      title="Press / to come here"
      maxlength="2000"
      value=${text}
      onInput=${(event) => setText(event.target.value)}
      onKeyDown=${(event) => event.key === "Escape" && event.target.blur()}
    />
    <button class="main">Search</button>
    <span class="row">
      <button type="button" disabled=${!text.trim()} title="Keep these words as a like" onClick=${() => add("like")}>+ Like</button>
      <button type="button" disabled=${!text.trim()} title="Keep these words as a dislike" onClick=${() => add("dislike")}>− Dislike</button>
      <button type="button" title="Or drop or paste one anywhere" onClick=${() => file.current.click()}>Picture…</button>
    </span>
    <input
      ref=${file}
      type="file"
      accept="image/*"
      multiple
      hidden
      onChange=${(event) => {
        for (const one of event.target.files) onAdd(ofFile("like", one));
        event.target.value = "";
      }}
    />
  </form>`;
}

const ofFile = (side, file) =>
  chip(side, "picture", file, file.name || "a pasted picture", { picture: URL.createObjectURL(file) });

/** Takes pictures that are dropped or pasted anywhere on the page. */
export function usePictures(take) {
  const latest = useRef(take);
  latest.current = take;
  useEffect(() => {
    const taken = (data) => {
      const files = [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));
      for (const file of files) {
        const { side, kind, value, label, picture } = ofFile("like", file);
        latest.current(side, kind, value, label, picture);
      }
      const link = files.length ? "" : (data?.getData("text/uri-list") || data?.getData("text/plain") || "").trim();
      if (isLink(link)) latest.current("like", "url", link, link);
      return files.length > 0 || isLink(link);
    };
    const body = document.body;
    const over = (event) => {
      event.preventDefault();
      body.classList.add("dropping");
    };
    const leave = (event) => event.relatedTarget === null && body.classList.remove("dropping");
    const drop = (event) => {
      event.preventDefault();
      body.classList.remove("dropping");
      taken(event.dataTransfer);
    };
    const paste = (event) => {
      const writing = event.target instanceof HTMLInputElement && !event.clipboardData.files.length;
      if (!writing && taken(event.clipboardData)) event.preventDefault();
    };
    const heard = { dragover: over, dragleave: leave, drop, paste };
    for (const [name, listener] of Object.entries(heard)) document.addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(heard)) document.removeEventListener(name, listener);
    };
  }, []);
}

/** The likes and dislikes, each with its weight. */
export function Chips({ chips, onChange }) {
  if (!chips.length) return null;
  const changed = (one, parts, step) => onChange(chips.map((other) => (other.key === one.key ? { ...other, ...parts } : other)), step);
  return html`<ul class="chips" aria-label="Likes and dislikes">
    ${chips.map(
      (one) => html`<li key=${one.key} class=${one.side}>
        <button
          aria-label=${`${one.label} is ${one.side === "like" ? "liked: make it a dislike" : "disliked: make it a like"}`}
          title="Like or dislike"
          onClick=${() => changed(one, { side: one.side === "like" ? "dislike" : "like" })}
        >
          ${one.side === "like" ? "+" : "−"}
        </button>
        ${one.kind !== "text" && html`<img src=${source(one)} alt="" width="28" height="28" />`}
        <span class="label" dir="auto" title=${one.label}>${one.label}</span>
        <${Field}
          type="number"
          min="0.1"
          max="10"
          step="0.1"
          aria-label=${`Weight of ${one.label}`}
          value=${one.weight}
          onDone=${(text) => changed(one, { weight: Math.min(10, Math.max(0.1, Number(text) || 1)) })}
        />
        <button aria-label=${`Remove ${one.label}`} title="Remove" onClick=${() => onChange(chips.filter((other) => other !== one))}>✕</button>
      </li>`,
    )}
  </ul>`;
}

/** The preview of a chip. A linked picture is not loaded, because its host would learn of this search. */
function source(one) {
  if (one.kind === "id") return address(`/v1/thumbnails/${encodeURIComponent(one.value)}?size=64`).href;
  return one.kind === "picture" ? one.picture : "pages/icon.svg";
}
