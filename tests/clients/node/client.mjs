// openai-node: chat whole and streamed, embeddings as it asks for them (base64), errors, headers.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const client = new OpenAI({
  baseURL: `${process.env.GATEWAY_URL}/v1`,
  apiKey: process.env.GATEWAY_KEY,
  maxRetries: 0,
});
const asked = {
  model: "smollm2-135m-instruct",
  messages: [{ role: "user", content: "What is the capital of France? Answer in one word." }],
  max_tokens: 24,
  temperature: 0,
  seed: 1,
};

const { data: whole, response, request_id } = await client.chat.completions
  .create(asked)
  .withResponse();
const text = whole.choices[0].message.content;
assert.match(text, /Paris/);
assert.ok(whole.usage.completion_tokens > 0);
assert.match(whole.system_fingerprint, /^fp_[0-9a-f]{10}$/);
assert.equal(request_id, response.headers.get("x-request-id"));
assert.equal(response.headers.get("inferpool-node"), whole.inferpool.node);
console.log(`openai-node ${VERSION}: whole answer ${JSON.stringify(text)}`);

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  if (chunk.choices.length === 0) {
    assert.equal(usage, null, "one chunk with usage, the last");
    usage = chunk.usage;
  } else {
    assert.equal(usage, null, "nothing follows usage");
    streamed += chunk.choices[0].delta.content ?? "";
  }
}
assert.equal(streamed, text);
assert.deepEqual(usage, whole.usage);
console.log("openai-node: the same, streamed, with usage");

const runner = client.chat.completions.stream(asked);
assert.equal(await runner.finalContent(), text);
console.log("openai-node: the same by its stream runner");

const plain = await client.completions.create({
  model: asked.model,
  prompt: "The capital of France is",
  max_tokens: 8,
  temperature: 0,
});
assert.match(plain.choices[0].text, /Paris/);
console.log(`openai-node: completion ${JSON.stringify(plain.choices[0].text)}`);

// It asks for base64 by itself and decodes it: a list of numbers would come out as noise.
const texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Rates of interest rose."];
const model = "all-minilm-l6-v2";
const decoded = (await client.embeddings.create({ model, input: texts })).data;
const numbers = (
  await client.embeddings.create({ model, input: texts, encoding_format: "float" })
).data;
const dot = (a, b) => a.reduce((sum, item, i) => sum + item * b[i], 0);
for (const [i, { embedding }] of decoded.entries()) {
  assert.equal(embedding.length, 384);
  assert.ok(Math.abs(dot(embedding, numbers[i].embedding) - 1) < 1e-5);
}
const near = dot(decoded[0].embedding, decoded[1].embedding);
const far = dot(decoded[0].embedding, decoded[2].embedding);
assert.ok(near > 0.5 && far < 0.3, `${near} ${far}`);
console.log(`openai-node: embeddings, ${near.toFixed(2)} near and ${far.toFixed(2)} far`);

const listed = [];
for await (const item of client.models.list()) listed.push(item.id);
assert.ok(listed.includes(asked.model));
assert.equal((await client.models.retrieve(asked.model)).id, asked.model);
console.log(`openai-node: ${listed.length} models`);

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const calling = { ...asked, max_tokens: 120, tools: [weather], tool_choice: "required" };
const calls = client.chat.completions.stream({ ...calling, parallel_tool_calls: false });
const called = (await calls.finalChatCompletion()).choices[0];
assert.equal(called.finish_reason, "tool_calls");
assert.equal(called.message.tool_calls[0].function.name, "get_weather");
const { city } = JSON.parse(called.message.tool_calls[0].function.arguments);
assert.equal(typeof city, "string");
console.log(`openai-node: a streamed call, for ${JSON.stringify(city)}`);

const several = await client.chat.completions.create({ ...asked, n: 2, logprobs: true });
assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1]);
for (const choice of several.choices) assert.ok(choice.logprobs.content[0].logprob <= 0);
console.log("openai-node: two choices with log-probabilities");

for (const [kind, status, code, param, change] of [
  [OpenAI.NotFoundError, 404, "model_not_found", "model", { model: "no-such-model" }],
  [OpenAI.BadRequestError, 400, "unsupported_parameter", "modalities", { modalities: ["audio"] }],
  [OpenAI.BadRequestError, 400, "invalid_request", "temperature", { temperature: 9 }],
]) {
  const error = await client.chat.completions.create({ ...asked, ...change }).catch((e) => e);
  assert.ok(error instanceof kind, `${error}`);
  assert.deepEqual([error.status, error.code, error.param], [status, code, param]);
}
const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "wrong", maxRetries: 0 });
const unknown = await stranger.chat.completions.create(asked).catch((e) => e);
assert.ok(unknown instanceof OpenAI.AuthenticationError);
console.log("openai-node: errors by class, code and parameter");
