// Runs one case of one client: node run.mjs CLIENT CASE. BASE_URL and KEY say where the server is.
import assert from "node:assert/strict";

const [client, name] = process.argv.slice(2);
const { cases } = await import(`./${client}.mjs`);
assert(name in cases, `${client}.mjs has no case '${name}'`);
await cases[name]();
