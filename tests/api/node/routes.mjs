// The official client, unmodified, over every route it has. Prints one JSON object; argv: base URL, key, then models.
import OpenAI, { toFile } from "openai";

const [baseURL, apiKey, chat, embedder, ear] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "one two three" }];
const seen = {};

async function text(stream, part) {
  let all = "";
  for await (const event of stream) all += part(event) ?? "";
  return all;
}

seen.chat = (await client.chat.completions.create({ model: chat, messages })).choices[0].message.content;
seen.chatStream = await text(
  await client.chat.completions.create({ model: chat, messages, stream: true }),
  (chunk) => chunk.choices[0]?.delta?.content,
);
seen.completion = (await client.completions.create({ model: chat, prompt: "one two" })).choices[0].text;
seen.completionStream = await text(
  await client.completions.create({ model: chat, prompt: "one two", stream: true }),
  (chunk) => chunk.choices[0]?.text,
);
seen.embeddings = (
  await client.embeddings.create({ model: embedder, input: ["one", "two"], encoding_format: "float" })
).data.length;
seen.response = (await client.responses.create({ model: chat, input: "one two" })).output_text;
seen.responseStream = await text(
  await client.responses.create({ model: chat, input: "one two", stream: true }),
  (event) => (event.type === "response.output_text.delta" ? event.delta : ""),
);
const file = await toFile(Buffer.alloc(4000), "speech.wav");
seen.transcription = (await client.audio.transcriptions.create({ model: ear, file })).text;
seen.transcriptionStream = await text(
  await client.audio.transcriptions.create({ model: ear, file, stream: true }),
  (event) => (event.type === "transcript.text.delta" ? event.delta : ""),
);
seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);
try {
  await client.responses.create({ model: chat, input: "x", background: true });
} catch (error) {
  seen.refused = { status: error.status, param: error.param, name: error.constructor.name };
}
console.log(JSON.stringify(seen));
