// A query of words, likes and dislikes: how it is written in the address, and how it is sent to the service.

import { ask } from "./api.js";
import { NO_FILTERS, whereOf } from "./filters.js";

export const DEFAULTS = {
  words: "",
  chips: [], // {key, side, kind, value, weight, label, picture}: of kind text, id, url or picture (a file)
  popularity: 0.3,
  least: 0, // percentile of popularity
  relevant: 0, // percentile of similarity
  distinct: true,
  groupBy: null,
  perGroup: 1,
  filters: NO_FILTERS,
  k: 48,
};
export const DUPLICATE = 0.97; // above this cosine two pictures look the same

let keys = 0;
export const chip = (side, kind, value, label = value, more = {}) => ({
  key: ++keys,
  side,
  kind,
  value,
  label,
  weight: 1,
  ...more,
});

/** The query as the part of an address after the question mark. Picture files cannot be part of it. */
export function toAddress(query) {
  const params = new URLSearchParams();
  if (query.words) params.set("q", query.words);
  for (const one of query.chips) {
    if (one.kind === "picture") continue;
    const label = one.kind === "id" ? `:${one.label}` : "";
    params.append(one.side, `${one.kind}:${one.weight}:${one.value}${label}`);
  }
  const set = (name, value, usual) => value !== usual && params.set(name, value);
  set("popularity", query.popularity, DEFAULTS.popularity);
  set("least", query.least, 0);
  set("relevant", query.relevant, 0);
  set("distinct", query.distinct ? "yes" : "no", "yes");
  if (query.groupBy) params.set("group", `${query.perGroup}:${query.groupBy}`);
  if (whereOf(query.filters)) params.set("filters", JSON.stringify(query.filters));
  return params.toString();
}

/** The query in an address. Parts that cannot be read are left out. */
export function fromAddress(search) {
  const params = new URLSearchParams(search);
  const chips = ["like", "dislike"].flatMap((side) =>
    params.getAll(side).flatMap((text) => {
      const [, kind, weight, value] = /^(text|id|url):([\d.]+):(.+)$/s.exec(text) ?? [];
      if (!kind) return [];
      const [id, ...label] = kind === "id" ? value.split(":") : [value];
      return [chip(side, kind, id, kind === "id" ? label.join(":") || id : value, { weight: within(weight, 0.1, 10, 1) })];
    }),
  );
  const [, perGroup, groupBy] = /^(\d{1,4}):(.+)$/.exec(params.get("group") ?? "") ?? [];
  return {
    ...DEFAULTS,
    words: params.get("q") ?? "",
    chips,
    popularity: within(params.get("popularity"), 0, 1, DEFAULTS.popularity),
    least: within(params.get("least"), 0, 99, 0),
    relevant: within(params.get("relevant"), 0, 99.9, 0),
    distinct: params.get("distinct") !== "no",
    groupBy: groupBy ?? null,
    perGroup: within(perGroup, 1, 1000, 1),
    filters: filtersOf(params.get("filters")),
  };
}

function within(text, low, high, usual) {
  const value = text === null || text === undefined || text === "" ? NaN : Number(text);
  return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : usual;
}

export function filtersOf(text) {
  try {
    const { values, ranges, own } = JSON.parse(text ?? "null") ?? NO_FILTERS;
    const isList = (list, length) =>
      Array.isArray(list) && (!length || list.length === length) && list.every((one) => /string|boolean/.test(typeof one));
    const only = (part, length) => Object.fromEntries(Object.entries(part).filter(([, list]) => isList(list, length)));
    return { values: only(values), ranges: only(ranges, 2), own: String(own) };
  } catch {
    return NO_FILTERS;
  }
}

const vectors = new Map(); // vectors that were computed before, so that a moving slider requests none again

/** The vector of a text, a linked picture or a file, for the request; for a picture also its id. */
async function vectorOf(kind, value, signal) {
  const known = typeof value === "string" ? `${kind}:${value}` : value;
  if (!vectors.has(known)) vectors.set(known, await embedded(kind, value, signal));
  return vectors.get(known);
}

async function embedded(kind, value, signal) {
  if (kind === "text") return { vector: (await ask("/v1/embed", { prompts: [value] }, { signal })).prompts[0].embedding };
  const form = new FormData();
  if (kind === "url") form.append("url", value);
  else form.append("image", value);
  const item = (await ask("/v1/embed", form, { signal })).images[0];
  if (!item.ok) throw new Error(`The picture cannot be used: ${item.error.message}.`);
  return { vector: item.embedding, id: item.id };
}

async function named(one, signal) {
  if (one.kind === "id") return { id: one.value, weight: one.weight };
  return { ...(await vectorOf(one.kind, one.value, signal)), weight: one.weight };
}

/** The hits, best first. Without words and likes these are the most popular pictures. */
export async function find(query, signal) {
  const where = whereOf(query.filters);
  const groups = query.groupBy ? { group_by: query.groupBy, per_group: query.perGroup } : {};
  const words = query.words.trim() ? [chip("like", "text", query.words.trim())] : [];
  const all = [...words, ...query.chips];
  if (!all.length) {
    const { hits } = await ask("/v1/browse", { by: "popularity", k: query.k, where, ...groups }, { signal });
    return hits;
  }
  if (!all.some((one) => one.side === "like")) {
    throw new Error("A search needs at least one like: add words, or turn a dislike into a like.");
  }
  const sides = await Promise.all(
    ["like", "dislike"].map((side) => Promise.all(all.filter((one) => one.side === side).map((one) => named(one, signal)))),
  );
  const asked = {
    likes: sides[0],
    dislikes: sides[1],
    k: query.k,
    popularity_weight: query.popularity,
    min_percentile: query.least,
    min_similarity_percentile: query.relevant,
    dedup: query.distinct ? DUPLICATE : null,
    where,
    ...groups,
  };
  return (await ask("/v1/similar", asked, { signal })).hits;
}
