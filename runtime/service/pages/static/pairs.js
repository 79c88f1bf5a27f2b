// The pairs of one person: shown one after the other, votes sent in their order behind what is shown, and taken back.

import { address, ask } from "./api.js";

const AHEAD = 2; // pairs that are there before they are shown
const UNDOS = 50;

/** The picture of a side as large as it is shown, or at its full size. */
export const pictureOf = (side, size) => address(`${side.picture}?size=${size}`).href;

/** A size that suffices for this screen, of those that the service makes. */
export const shownSize = () => (Math.min(innerWidth / 2, innerHeight) * devicePixelRatio > 560 ? 1024 : 512);

export class Pairs {
  /** `changed(state)` hears of every change; the name may be empty. */
  constructor(changed, voter) {
    this.changed = changed;
    this.voter = voter;
    this.queue = []; // of showings; the first one is shown
    this.voted = []; // {showing, choice} of what can be taken back, the latest last
    this.done = false;
    this.fault = null;
    this.said = {}; // what the service told last: progress, agreement, instructions and so on
    this.unsent = 0; // votes that are not written down yet
    this.work = Promise.resolve(); // votes and questions, one after the other
    this.images = new Map(); // loaded ahead, kept so that the browser does not let go of them
  }

  get state() {
    const { queue, voted, done, fault, said } = this;
    return { current: queue[0] ?? null, undoable: voted.length > 0, done, fault, ...said };
  }

  /** Ask for pairs until so many are ahead. */
  load = () => this.#then(() => this.#more());

  vote(choice, reason, seconds) {
    const showing = this.queue.shift();
    if (!showing) return;
    this.voted = [...this.voted, showing].slice(-UNDOS);
    this.changed(this.state);
    this.unsent++;
    this.#then(async () => {
      try {
        this.#hear(await ask("/v1/compare/votes", { showing: showing.showing, choice, reason, seconds }));
      } catch (fault) {
        this.voted = this.voted.filter((one) => one !== showing);
        if (fault.status === 404 || fault.status === 409) await this.#more(); // it was answered in another window
        else this.queue.unshift(showing);
        throw fault;
      } finally {
        this.unsent--;
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

  /** Begin with pictures of one's own prompt, or with null go back to the owner's pairs. */
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

  #hear({ progress, agreement, instructions, prompts, voter, names }) {
    const heard = Object.entries({ progress, agreement, instructions, prompts, voter, names });
    this.said = { ...this.said, ...Object.fromEntries(heard.filter(([, value]) => value !== undefined)) };
  }

  #loadAhead(showing) {
    for (const side of [showing.left, showing.right]) {
      const image = new Image();
      image.src = pictureOf(side, shownSize());
      image.decode?.().catch(() => {}); // one that cannot be shown says so where it is shown
      this.images.set(image.src, image);
    }
    for (const old of [...this.images.keys()].slice(0, -24)) this.images.delete(old);
  }
}
