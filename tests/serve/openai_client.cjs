// OpenAI's client for JavaScript, unchanged: node openai_client.cjs URL MODEL. Prints JSON.
const assert = require("node:assert/strict");
const OpenAI = require("openai");

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const found = {};

async function completions() {
  const body = { model, prompt: "hello", max_tokens: 8, seed: 3, ignore_eos: true };
  found.completion = await client.completions.create({ ...body, n: 2, logprobs: 2 });
  found.completionStream = "";
  for await (const event of await client.completions.create({ ...body, stream: true }))
    found.completionStream += event.choices[0].text;
}

async function chat() {
  const body = { model, messages, max_completion_tokens: 8, seed: 3, ignore_eos: true };
  found.chat = await client.chat.completions.create({ ...body, logprobs: true, top_logprobs: 2 });
  found.chatStream = "";
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const event of await client.chat.completions.create({ ...body, ...options })) {
    found.chatStream += event.choices[0]?.delta.content ?? "";
    found.chatUsage = event.usage ?? found.chatUsage;
  }
  found.chatHelper = await client.chat.completions.stream(body).finalChatCompletion();
}

async function responses() {
  const body = { model, input: "hello", max_output_tokens: 8, seed: 3, ignore_eos: true };
  found.response = await client.responses.create(body);
  found.responseStream = "";
  for await (const event of await client.responses.create({ ...body, stream: true }))
    if (event.type === "response.output_text.delta") found.responseStream += event.delta;
  found.responseHelper = await client.responses.stream(body).finalResponse();
}

async function others() {
  found.models = [];
  for await (const each of client.models.list()) found.models.push(each.id);
  found.model = await client.models.retrieve(model);
  const input = ["hello", "a b"];
  found.base64 = await client.embeddings.create({ model, input }); // in base64, decoded
  found.floats = await client.embeddings.create({ model, input, encoding_format: "float" });
}

async function errors() {
  const unknown = client.completions.create({ model: "none", prompt: "a" });
  await assert.rejects(unknown, OpenAI.NotFoundError);
  await assert.rejects(client.completions.create({ model, prompt: "a", n: 0 }), (error) => {
    found.error = { status: error.status, param: error.param, code: error.code };
    return error instanceof OpenAI.BadRequestError;
  });
  const endless = { model, prompt: "a", max_tokens: 4000, ignore_eos: true, stream: true };
  for await (const _ of await client.completions.create(endless)) break; // cancels the request
}

(async () => {
  for (const part of [completions, chat, responses, others, errors]) await part();
  console.log(JSON.stringify(found));
})();
