// openai for JavaScript.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { ANIMAL, BASE_URL, KEY, MAX_FORM_TOKENS, MAX_TOKENS, MESSAGES, QUESTION, TOO_LONG, leftEarly } from "./asked.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: KEY, maxRetries: 0 });
const greedy = { model: "any", messages: MESSAGES, temperature: 0, max_tokens: MAX_TOKENS };
const tools = [{ type: "function", function: { name: "find_animal", parameters: ANIMAL } }];
const called = { ...greedy, max_tokens: MAX_FORM_TOKENS, tools, tool_choice: "required", parallel_tool_calls: false };

async function text() {
  return (await client.chat.completions.create(greedy)).choices[0].message.content;
}

export const cases = {
  async models() {
    const [model] = (await client.models.list()).data;
    assert.deepEqual(await client.models.retrieve(model.id), model);
  },
  async plain() {
    const answer = await client.chat.completions.create(greedy);
    assert(answer.choices[0].message.content);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },
  async streamed() {
    const stream = await client.chat.completions.create({
      ...greedy, stream: true, stream_options: { include_usage: true },
    });
    let whole = "", usage;
    for await (const chunk of stream) {
      whole += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage;
    }
    assert.equal(whole, await text());
    assert(usage.completion_tokens <= MAX_TOKENS);
  },
  async completions() {
    const ask = { model: "any", prompt: QUESTION, temperature: 0, max_tokens: MAX_TOKENS };
    let whole = "";
    for await (const chunk of await client.completions.create({ ...ask, stream: true })) whole += chunk.choices[0].text;
    assert.equal(whole, (await client.completions.create(ask)).choices[0].text);
  },
  async responses() {
    const ask = { model: "any", input: QUESTION, temperature: 0, max_output_tokens: MAX_TOKENS };
    const whole = await client.responses.stream(ask).finalResponse();
    assert.equal(whole.output_text, (await client.responses.create(ask)).output_text);
    assert.equal(whole.output_text, await text());
  },
  async tools() {
    const plain = await client.chat.completions.create(called);
    const streamed = await client.chat.completions.stream(called).finalChatCompletion();
    for (const { choices: [choice] } of [plain, streamed]) {
      assert.equal(choice.finish_reason, "tool_calls");
      const [{ function: { name, arguments: text } }] = choice.message.tool_calls;
      assert.equal(name, "find_animal");
      assert(["dog", "cat"].includes(JSON.parse(text).kind));
    }
  },
  async schema() {
    const answer = await client.chat.completions.parse({
      ...greedy, max_tokens: MAX_FORM_TOKENS,
      response_format: { type: "json_schema", json_schema: { name: "animal", schema: ANIMAL, strict: true } },
    });
    assert(["dog", "cat"].includes(answer.choices[0].message.parsed.kind));
  },
  async error() {
    await assert.rejects(client.chat.completions.create({ ...greedy, temperature: 3 }), (error) => {
      assert(error instanceof OpenAI.BadRequestError);
      assert.deepEqual([error.type, error.code, error.param], ["invalid_request_error", "invalid_parameter", "temperature"]);
      return true;
    });
    const ask = { ...greedy, messages: [{ role: "user", content: TOO_LONG }], stream: true };
    await assert.rejects(client.chat.completions.create(ask), { status: 400, code: "context_length_exceeded" });
    const other = new OpenAI({ baseURL: BASE_URL, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(other.models.list(), OpenAI.AuthenticationError);
  },
  async disconnect() {
    await leftEarly(async () => {
      const stream = await client.chat.completions.create({
        model: "any", messages: MESSAGES, ignore_eos: true, stream: true,
      });
      for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
    });
  },
};
