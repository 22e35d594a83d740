// What both clients ask, and a look at the server from outside.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

export const { BASE_URL, KEY } = process.env;
export const QUESTION = "Tell me a story about a dog.";
export const MESSAGES = [{ role: "user", content: QUESTION }];
export const MAX_TOKENS = 24;
export const MAX_FORM_TOKENS = 200;
export const TOO_LONG = "dog ".repeat(4000);
export const ANIMAL = {
  type: "object",
  properties: { kind: { enum: ["dog", "cat"] }, age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["kind", "age"],
  additionalProperties: false,
};

async function numAborted() {
  const url = new URL("/metrics", BASE_URL);
  const text = await (await fetch(url, { headers: { Authorization: `Bearer ${KEY}` } })).text();
  return Number(text.match(/^bitnet:request_success_total\{finished_reason="abort"\} (.+)$/m)[1]);
}

// `leave` leaves one answer while it is written; the server aborts it although this process lives on.
export async function leftEarly(leave) {
  const before = await numAborted();
  await leave();
  const deadline = Date.now() + 20_000;
  while ((await numAborted()) !== before + 1) {
    assert(Date.now() < deadline, "the answer that was left is not aborted");
    await sleep(20);
  }
}
