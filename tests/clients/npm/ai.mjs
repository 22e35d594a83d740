// Vercel's ai with @ai-sdk/openai-compatible.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, jsonSchema, streamText, tool } from "ai";
import { z } from "zod";
import { ANIMAL, BASE_URL, KEY, MAX_FORM_TOKENS, MAX_TOKENS, MESSAGES, QUESTION, TOO_LONG, leftEarly } from "./asked.mjs";

const served = createOpenAICompatible({
  name: "bitnet", baseURL: BASE_URL, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true,
});
const model = served("any");
const greedy = { model, messages: MESSAGES, temperature: 0, maxOutputTokens: MAX_TOKENS, maxRetries: 0 };
const animal = z.object({ kind: z.enum(["dog", "cat"]), age: z.number().int().min(0).max(99) });
const form = { ...greedy, maxOutputTokens: MAX_FORM_TOKENS };
const called = {
  ...form,
  tools: { find_animal: tool({ description: "Find an animal.", inputSchema: jsonSchema(ANIMAL) }) },
  toolChoice: "required",
};

export const cases = {
  async plain() {
    const { text, finishReason, usage } = await generateText(greedy);
    assert(text);
    assert(["stop", "length"].includes(finishReason));
    assert(usage.outputTokens <= MAX_TOKENS && usage.inputTokens > 0);
  },
  async streamed() {
    const result = streamText(greedy);
    let whole = "";
    for await (const piece of result.textStream) whole += piece;
    assert.equal(whole, (await generateText(greedy)).text);
    assert((await result.usage).outputTokens > 0);
  },
  async completions() {
    const ask = { ...greedy, model: served.completionModel("any"), messages: undefined, prompt: QUESTION };
    let whole = "";
    for await (const piece of streamText(ask).textStream) whole += piece;
    assert.equal(whole, (await generateText(ask)).text);
  },
  async tools() {
    const [plain] = (await generateText(called)).toolCalls;
    const [streamed] = await streamText(called).toolCalls;
    for (const call of [plain, streamed]) {
      assert.equal(call.toolName, "find_animal");
      animal.parse(call.input);
    }
    assert.deepEqual(streamed.input, plain.input);
  },
  async schema() {
    const { output } = await generateText({ ...form, output: Output.object({ schema: animal }) });
    animal.parse(output);
    const streamed = streamText({ ...form, output: Output.object({ schema: animal }) });
    let last;
    for await (const part of streamed.partialOutputStream) last = part;
    assert.deepEqual(last, output);
  },
  async error() {
    await assert.rejects(generateText({ ...greedy, temperature: 3 }), (error) => {
      assert(APICallError.isInstance(error));
      assert.equal(error.statusCode, 400);
      assert.equal(error.data.error.type, "invalid_request_error");
      assert.equal(error.data.error.code, "invalid_parameter");
      assert.match(error.message, /temperature/);
      return true;
    });
    const tooLong = generateText({ ...greedy, messages: [{ role: "user", content: TOO_LONG }] });
    await assert.rejects(tooLong, (error) => error.data.error.code === "context_length_exceeded");
  },
  async disconnect() {
    await leftEarly(async () => {
      const left = new AbortController();
      const { textStream } = streamText({
        model, messages: MESSAGES, maxRetries: 0, abortSignal: left.signal,
        providerOptions: { bitnet: { ignore_eos: true } },
      });
      for await (const piece of textStream) if (piece) left.abort();
    });
  },
};
