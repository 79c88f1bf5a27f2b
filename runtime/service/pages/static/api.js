// Sends requests to the service. Addresses are relative to the page, so that a proxy may serve it under a path.

const BUSY_TRIES = 4; // tries of a request that the service refuses for the moment, or that is late

/** The error of a request, with a message for people. */
export class Fault extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const address = (path) => new URL(`.${path}`, document.baseURI);

/** The address of a small version of a hit's picture. */
export const thumbnail = (hit, size) => address(`${hit.thumbnail}?size=${size}`).href;

/** The JSON answer to a GET, or to a POST if there is a body (an object or a form). Throws Fault or AbortError. */
export async function ask(path, body, { signal } = {}) {
  for (let tried = 1; ; tried++) {
    const answer = await send(path, body, signal);
    if (answer.ok) return answer.json();
    if (answer.status === 401) return signIn();
    const said = await answer.json().catch(() => null);
    if ([429, 503, 504].includes(answer.status) && tried < BUSY_TRIES) {
      await pause(1000 * Number(answer.headers.get("Retry-After") ?? 1), signal);
      continue;
    }
    throw new Fault(said?.error?.message ?? `The service answered ${answer.status}.`, answer.status);
  }
}

async function send(path, body, signal) {
  const isForm = body instanceof FormData;
  const options = body === undefined ? {} : { method: "POST", body: isForm ? body : JSON.stringify(body) };
  if (body !== undefined && !isForm) options.headers = { "Content-Type": "application/json" };
  try {
    return await fetch(address(path), { ...options, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("The service does not answer. It may have stopped, or the network is down; try again.");
  }
}

function signIn() {
  const to = location.pathname.split("/").at(-1) + location.search;
  location.assign(address(`/sign-in?to=${encodeURIComponent(to)}`));
  return new Promise(() => {}); // never resolves, since the browser leaves this page
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
  * Runs `work(latest, isOutdated)` for the latest of many wishes, one at a time. Of the wishes during a run only the
  * last is run next. So a slider moves smoothly even if the service is slow.
 */
export function latestOnly(work) {
  let running = false;
  let waiting = null;
  return async function run(wish) {
    waiting = { wish };
    if (running) return;
    running = true;
    while (waiting) {
      const next = waiting.wish;
      waiting = null;
      await work(next, () => waiting !== null);
    }
    running = false;
  };
}
