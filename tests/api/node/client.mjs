// The official client, unmodified: lists models, chats, streams. Prints one JSON object; argv: base URL, key, model.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 300_000 });
const messages = [{ role: "user", content: "What is Farebox?" }];

const models = [];
for await (const entry of client.models.list()) models.push(entry.id);

const { data: plain, response } = await client.chat.completions
  .create({ model, messages, max_tokens: 8 })
  .withResponse();

const stream = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 8,
  stream: true,
  stream_options: { include_usage: true },
});
let text = "";
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

let refused = null;
try {
  await new OpenAI({ baseURL, apiKey: "fbx_sk_wrong", maxRetries: 0 }).models.list();
} catch (error) {
  refused = { status: error.status, code: error.code, name: error.constructor.name };
}

console.log(
  JSON.stringify({
    models,
    plain: { text: plain.choices[0].message.content, usage: plain.usage, requestId: plain._request_id },
    requestHeader: response.headers.get("x-request-id"),
    stream: { text, usage },
    refused,
  }),
);
