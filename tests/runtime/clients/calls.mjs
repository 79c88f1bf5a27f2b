// Makes the calls that a test wants of plaudit.mjs, and prints what came of each and how long it waited between tries.
// Where the test gives replies, these are what fetch gives, one after another, and dice always fall to a half.

import { readFileSync } from "node:fs";
import { Plaudit } from "../../../runtime/clients/plaudit.mjs";

const { url, options, calls, replies } = JSON.parse(readFileSync(0, "utf8"), (_, value) =>
  value?.base64 === undefined ? value : Uint8Array.from(Buffer.from(value.base64, "base64")),
);
const waits = [];
const bodies = [];
if (replies) {
  Math.random = () => 0.5;
  globalThis.setTimeout = (wake, ms) => (waits.push(ms / 1000), queueMicrotask(wake));
  globalThis.fetch = async (_, { body }) => {
    bodies.push([...body].map(([name, value]) => (value instanceof Blob ? `${name}: ${value.size}` : `${name}=${value}`)));
    const reply = replies.shift();
    if (reply.error === "TypeError") throw new TypeError("fetch failed");
    if (reply.error) throw new DOMException("it took too long", reply.error);
    const headers = reply.after === undefined ? {} : { "Retry-After": reply.after };
    return new Response(JSON.stringify(reply.json), { status: reply.status, headers });
  };
}
const done = [];
for (const [method, ...given] of calls) {
  try {
    const found = await new Plaudit(url, options)[method](...given);
    done.push({ found: JSON.parse(JSON.stringify(found), (_, value) => (value?.embedding ? { ...value, embedding: Object.values(value.embedding) } : value)) });
  } catch (error) {
    done.push({ name: error.name, message: error.message, status: error.status, requestId: error.requestId });
  }
}
const methods = Object.getOwnPropertyNames(Plaudit.prototype);
console.log(JSON.stringify({ done, waits, bodies, methods }));
