// A client of plaudit's service for browsers and for Node.js 18 or later, without dependencies. plaudit.d.mts has its types.
//
//     const plaudit = new Plaudit("http://localhost:8000", { token });
//     for (const item of await plaudit.score(files, "dog face")) console.log(item.ok ? item.score : item.error.message);
//
// Pictures are sent in batches, and each gets its answer or its own error, in the same order. An error of a whole
// request is thrown as a ServiceError. While the service is too busy or cannot be reached, a request is sent again.

const BUSY = [429, 503];
const TOO_MUCH = [413, 429, 504]; // a request has too many bytes or items, or missed its deadline
const FIRST_BACKOFF_S = 0.5;
const MOST_BACKOFF_S = 8;
const SIDE_BY_SIDE = 4; // concurrent requests of one call

/** The error of a whole request. `status` is null if there was no answer at all. */
export class ServiceError extends Error {
  constructor(status, reason, message, requestId) {
    super(`${status ?? ""} ${reason}: ${message} (request ${requestId})`.trimStart());
    this.name = "ServiceError";
    Object.assign(this, { status, reason, detail: message, requestId });
  }
}

export class Plaudit {
  #url;
  #headers;
  #options;

  constructor(url, { token = "", batch = 32, batchBytes = 8 * 2 ** 20, retries = 5, timeoutS = 120 } = {}) {
    if (!(batch >= 1)) throw new RangeError(`batch is ${batch}; wanted at least 1`);
    this.#url = new URL(url).href.replace(/\/+$/, "");
    this.#headers = token ? { Authorization: `Bearer ${token}` } : {};
    new Headers(this.#headers); // throws here if the token cannot be sent in a header
    this.#options = { batch, batchBytes, retries, timeoutS };
  }

  /**
   * Scores pictures under a prompt, or each under its own. Higher is preferred. If a bundle has several outputs, the
   * first requested one is the score, and all requested ones are in `outputs`. `sources` are source pictures: one for
   * all, or one or null for each.
   */
  async score(images, prompts = null, { outputs = [], sources = null } = {}) {
    const pictures = Array.from(images, pictureOf);
    const several = Array.isArray(prompts) ? prompts : pictures.map(() => prompts);
    if (several.length !== pictures.length) {
      throw new RangeError(`got ${several.length} prompts for ${pictures.length} pictures; wanted one, or one for each`);
    }
    const one = sources === null || Array.isArray(sources) ? null : pictureOf(sources);
    const each = Array.isArray(sources) ? sources : pictures.map(() => one);
    const madeFrom = each.map((source) => source && pictureOf(source));
    if (madeFrom.length !== pictures.length) {
      throw new RangeError(`got ${madeFrom.length} sources for ${pictures.length} pictures; wanted one, or one for each`);
    }
    const items = pictures.map((picture, i) => ({ picture, prompt: several[i], source: madeFrom[i] }));
    return this.#ask({ path: "/v1/score", lists: ["items"], outputs }, items);
  }

  /** Scores pictures under one prompt, with the probability that each is the preferred one of all. */
  async rank(images, prompt = null, { outputs = [], sources = null } = {}) {
    return ranked(await this.score(images, prompt, { outputs, sources }));
  }

  /** Unit vectors of pictures and prompts. */
  async embed({ images = [], prompts = [] }) {
    const pictures = Array.from(images, (image) => ({ picture: pictureOf(image), prompt: null }));
    const items = [...pictures, ...prompts.map((prompt) => ({ picture: null, prompt }))];
    const found = (await this.#ask({ path: "/v1/embed", lists: ["images", "prompts"] }, items)).map((item) =>
      item.ok ? { ok: true, embedding: Float32Array.from(item.embedding) } : item,
    );
    return { images: found.slice(0, pictures.length), prompts: found.slice(pictures.length) };
  }

  /** Popular pictures of the catalogue that are like `likes` and unlike `dislikes`, best first. */
  async similar(likes, { dislikes = [], ...wishes } = {}) {
    const form = new FormData();
    for (const [side, given] of Object.entries({ like: likes, dislike: dislikes })) {
      for (const like of given) {
        if (like.text !== undefined && !(like instanceof Blob)) form.append(`${side}_text`, like.text);
        else if (like.id !== undefined) form.append(`${side}_id`, like.id);
        else append(form, side, `${side}_url`, pictureOf(like));
      }
    }
    for (const [name, wish] of Object.entries(wishes)) if (wish != null) form.append(name, String(wish));
    const { document, unexpected } = await this.#document("/v1/similar", form);
    return Array.isArray(document.hits) ? document.hits : unexpected();
  }

  /** The address of a small version of a hit's picture, whose longer side has 64, 128, 256 or 512 pixels. */
  thumbnailUrl(hit, size = 256) {
    return `${this.#url}/v1/thumbnails/${encodeURIComponent(hit.id ?? hit)}?size=${size}`;
  }

  /** Whether the service can be reached and is ready. The request is sent only once. */
  async ready() {
    try {
      return (await this.#fetch("/health/ready", {})).status === 200;
    } catch {
      return false;
    }
  }

  /** The answers for all items, with so many batches at the same time. */
  async #ask(question, items) {
    const batches = inBatches(items, this.#options);
    const found = [];
    let next = 0;
    const work = async () => {
      try {
        while (next < batches.length) {
          const i = next++;
          found[i] = await this.#answers(question, batches[i]);
        }
      } catch (error) {
        next = batches.length; // the others are no longer needed
        throw error;
      }
    };
    await Promise.all(Array.from({ length: SIDE_BY_SIDE }, work));
    return found.flat();
  }

  /** Halves a request that is too much, and later ones too. A single item that is too large gets its own error. */
  async #answers(question, items) {
    if (items.length > (question.most ?? Infinity)) {
      const half = Math.floor(items.length / 2);
      const first = await this.#answers(question, items.slice(0, half));
      return [...first, ...(await this.#answers(question, items.slice(half)))];
    }
    const { order, form } = formOf(items);
    for (const name of question.outputs ?? []) form.append("outputs", name);
    let answer;
    try {
      answer = await this.#document(question.path, form, items.length > 1);
    } catch (error) {
      if (TOO_MUCH.includes(error.status) && items.length > 1) {
        question.most = Math.min(question.most ?? Infinity, Math.floor(items.length / 2));
        return this.#answers(question, items);
      }
      if (error.status !== 413) throw error;
      return [{ ok: false, error: { stage: "limits", reason: error.reason, message: error.detail } }];
    }
    const { document, unexpected, requestId } = answer;
    const given = question.lists.flatMap((name) => document[name]);
    if (given.length !== items.length || !given.every((item) => typeof item?.ok === "boolean")) unexpected();
    const bundle = `${document.bundle} ${document.precision}`;
    question.bundle ??= bundle;
    if (question.bundle !== bundle) {
      const message = "another bundle was put in force meanwhile, and what two say does not compare; ask again";
      throw new ServiceError(200, "another bundle", message, requestId);
    }
    const found = [];
    order.forEach((i, place) => (found[i] = given[place]));
    return found;
  }

  /** The JSON of an answer. Throws a ServiceError if it is an error, or cannot be an answer of the service. */
  async #document(path, body, divisible = false) {
    const requestId = Array.from({ length: 4 }, () => Math.random().toString(16).slice(2, 10)).join("");
    const { status, text } = await this.#tried(path, body, divisible, requestId);
    const unexpected = () => {
      const message = `${this.#url}${path} answered, but not as plaudit's service does: ${text.slice(0, 200)}`;
      throw new ServiceError(status, "unexpected answer", message, requestId);
    };
    let document;
    try {
      document = JSON.parse(text);
    } catch {
      unexpected();
    }
    if (status === 200) return { document: document ?? unexpected(), unexpected, requestId };
    const { reason, message } = document?.error ?? unexpected();
    throw new ServiceError(status, reason, message, requestId);
  }

  /**
   * The answer to a request, which is sent again while the service is too busy or the connection breaks. If a divisible
   * request gets 429 twice, this is its answer, since it may always be too much while its parts are not.
   */
  async #tried(path, body, divisible, requestId) {
    const { retries, timeoutS } = this.#options;
    const until = performance.now() + 1000 * timeoutS;
    for (let tries = 0; ; tries++) {
      let answer = null;
      let broken = null;
      try {
        answer = await this.#fetch(path, { method: "POST", body, headers: { "X-Request-Id": requestId } });
      } catch (error) {
        broken = error;
      }
      // fetch throws a TypeError if the connection breaks, and another error after a timeout.
      const busy = BUSY.includes(answer?.status) && !(divisible && tries && answer.status === 429);
      const again = answer ? busy : broken instanceof TypeError;
      const afterS = /^\d+$/.test(answer?.after ?? "") ? Number(answer.after) : 0;
      const waitMs = 1000 * (afterS + Math.random() * Math.min(MOST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** tries));
      if (again && tries < retries && performance.now() + waitMs <= until) {
        await new Promise((wake) => setTimeout(wake, waitMs));
      } else if (answer) {
        return answer;
      } else {
        const message = `${this.#url}${path}: ${broken.cause?.message ?? broken.message}`;
        throw new ServiceError(null, "no answer", message, requestId);
      }
    }
  }

  async #fetch(path, { headers, ...init }) {
    const signal = AbortSignal.timeout(1000 * this.#options.timeoutS);
    const response = await fetch(this.#url + path, {
      ...init,
      headers: { ...this.#headers, ...headers },
      signal,
      redirect: "manual", // the token must reach only this service
    });
    return { status: response.status, after: response.headers.get("Retry-After"), text: await response.text() };
  }
}

/** A Blob, or an http(s) address that the service fetches. */
function pictureOf(given) {
  if (given instanceof Blob || (typeof given === "string" && /^https?:\/\//i.test(given))) return given;
  if (given instanceof ArrayBuffer || ArrayBuffer.isView(given)) return new Blob([given]);
  throw new TypeError("wanted pictures as Blobs, bytes or http(s) addresses");
}

function inBatches(items, { batch, batchBytes }) {
  const batches = [];
  let size = 0;
  for (const item of items) {
    const last = batches.at(-1);
    const pictureBytes = item.picture?.size ?? 0;
    const sourceBytes = item.source?.size ?? 0;
    let more = pictureBytes + (last && last.at(-1).source === item.source ? 0 : sourceBytes); // a source that all share is sent once
    if (!last || size + more > batchBytes || last.length >= batch) {
      batches.push([]);
      size = 0;
      more = pictureBytes + sourceBytes;
    }
    batches.at(-1).push(item);
    size += more;
  }
  return batches;
}

/** The order in which the service will answer, and the form: first files, then addresses, then prompts. */
function formOf(items) {
  const place = ({ picture }) => (picture instanceof Blob ? 0 : picture ? 1 : 2);
  const order = [...items.keys()].sort((a, b) => place(items[a]) - place(items[b]));
  const form = new FormData();
  for (const i of order) if (items[i].picture) append(form, "images", "urls", items[i].picture);
  const prompts = order.map((i) => items[i].prompt).filter((prompt) => prompt !== null);
  const isOne = items.every(({ picture }) => picture) && new Set(prompts).size === 1; // one for all pictures
  for (const prompt of isOne ? prompts.slice(0, 1) : prompts) form.append("prompts", prompt);
  const sources = order.map((i) => items[i].source ?? null);
  const same = sources.every((source) => source === sources[0]); // one for all pictures, or none
  for (const source of same ? sources.slice(0, sources[0] ? 1 : 0) : sources) {
    append(form, "sources", "sources", source ?? ""); // an empty text for a picture without a source
  }
  return { order, form };
}

function append(form, fileField, urlField, picture) {
  if (picture instanceof Blob) form.append(fileField, picture, "picture");
  else form.append(urlField, picture);
}

/** Ranks and probabilities as /v1/rank would give for all in one request. Ties keep their order. */
function ranked(items) {
  const good = [...items.keys()].filter((i) => items[i].ok).sort((a, b) => items[b].score - items[a].score);
  const logits = good.map((i) => items[i].calibrated_score ?? items[i].score);
  const greatest = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - greatest));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const found = [...items];
  good.forEach((i, place) => (found[i] = { ...items[i], rank: place + 1, probability: weights[place] / sum }));
  return found;
}
