// The pairs of one person. They are shown one after the other, votes are sent in order in the background and can be undone.

import { address, ask } from "./api.js";

const AHEAD = 2; // number of pairs that are loaded in advance
const UNDOS = 50;

/** The address of a side's picture in the size in which it is shown, or in full size. */
export const pictureOf = (side, size) => address(`${side.picture}?size=${size}`).href;

/** The smallest size of the service that is enough for this screen. */
export const shownSize = () => (Math.min(innerWidth / 2, innerHeight) * devicePixelRatio > 560 ? 1024 : 512);

export class Pairs {
  /** `changed(state)` is called after every change. The name may be empty. */
  constructor(changed, voter) {
    this.changed = changed;
    this.voter = voter;
    this.queue = []; // showings; the first one is on the page
    this.voted = []; // {showing, choice} of votes that can be undone, the latest last
    this.done = false;
    this.fault = null;
    this.said = {}; // the last answer of the service: progress, agreement, instructions and so on
    this.work = Promise.resolve(); // the chain of requests, one after the other
    this.images = new Map(); // pictures loaded in advance, referenced so that the browser keeps them
  }

  get state() {
    const { queue, voted, done, fault, said } = this;
    return { current: queue[0] ?? null, undoable: voted.length > 0, done, fault, ...said };
  }

  /** Request pairs until enough are loaded in advance. */
  load = () => this.#then(() => this.#more());

  vote(choice, reason, seconds) {
    const showing = this.queue.shift();
    if (!showing) return;
    this.voted = [...this.voted, showing].slice(-UNDOS);
    this.changed(this.state);
    this.#then(async () => {
      try {
        this.#hear(await ask("/v1/compare/votes", { showing: showing.showing, choice, reason, seconds }));
      } catch (fault) {
        this.voted = this.voted.filter((one) => one !== showing);
        if (fault.status !== 404 && fault.status !== 409) this.queue.unshift(showing);
        throw fault;
      }
      await this.#more();
    });
  }

  undo() {
    const showing = this.voted.at(-1);
    if (!showing) return;
    this.voted = this.voted.slice(0, -1);
    this.queue.unshift(showing);
    this.done = false;
    this.changed(this.state);
    this.#then(async () => this.#hear(await ask("/v1/compare/undo", { showing: showing.showing })));
  }

  /** Begin with pictures for the person's own prompt, or with null return to the owner's pairs. */
  prompt = (prompt) =>
    this.#then(async () => {
      this.queue = [];
      this.#take(await ask("/v1/compare/prompt", { prompt, ...this.#who() }));
      await this.#more();
    });

  rename(voter) {
    this.voter = voter;
    this.queue = [];
    this.voted = [];
    return this.load();
  }

  #who = () => (this.voter ? { voter: this.voter } : {});

  #then(step) {
    this.work = this.work.then(async () => {
      try {
        await step();
        this.fault = null;
      } catch (fault) {
        this.fault = fault;
      }
      this.changed(this.state);
    });
    return this.work;
  }

  async #more() {
    const count = AHEAD + 1 - this.queue.length;
    if (count <= 0) return;
    const holding = this.queue.map((one) => one.showing);
    this.#take(await ask("/v1/compare/next", { count, holding, ...this.#who() }));
  }

  #take({ showings, done, ...said }) {
    this.#hear(said);
    const known = new Set([...this.queue, ...this.voted].map((one) => one.showing));
    const fresh = showings.filter((one) => !known.has(one.showing));
    this.queue.push(...fresh);
    this.done = Boolean(done) && this.queue.length === 0;
    for (const one of fresh) this.#loadAhead(one);
  }

  #hear({ progress, agreement, instructions, prompts, voter }) {
    const heard = Object.entries({ progress, agreement, instructions, prompts, voter });
    this.said = { ...this.said, ...Object.fromEntries(heard.filter(([, value]) => value !== undefined)) };
  }

  #loadAhead(showing) {
    for (const side of [showing.left, showing.right]) {
      const image = new Image();
      image.src = pictureOf(side, shownSize());
      image.decode?.().catch(() => {}); // an error is reported when the picture is shown
      this.images.set(image.src, image);
    }
    for (const old of [...this.images.keys()].slice(0, -24)) this.images.delete(old);
  }
}
