// The server's interface, which is OpenAI's: requests, streams and errors.

import { NUMBERS } from "./tree.mjs";

const ALTERNATIVES = 8;

export class ServerError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Api {
  // whenAsked is told whether the server asks for another key
  constructor(base, whenAsked) {
    this.base = base;
    this.whenAsked = whenAsked;
    this.key = "";
  }

  async request(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      const sent = body && JSON.stringify(body);
      response = await fetch(new URL(path, this.base), { method: body ? "POST" : "GET", headers, body: sent, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (/header|ByteString|ISO-8859-1/i.test(error.message) && this.key) throw new ServerError("This is no API key.", 401);
      throw new ServerError("The server cannot be reached; is it still running?");
    }
    this.whenAsked(response.status === 401);
    if (response.status === 401) {
      throw new ServerError(this.key ? "The server does not accept this API key." : "This server asks for an API key.", 401);
    }
    if (response.ok) return response;
    throw await errorOf(response);
  }

  async models() {
    const listed = await (await this.request("v1/models")).json();
    const models = Array.isArray(listed?.data) ? listed.data.filter((entry) => typeof entry?.id === "string") : [];
    if (!models.length) throw new ServerError("The server lists no model.");
    return models;
  }

  async *answer(model, body, signal) {
    // the pieces of an answer: { choice, usage }
    const path = isChat(model) ? "v1/chat/completions" : "v1/completions";
    const response = await this.request(path, body, signal);
    for await (const event of eventsOf(response.body)) {
      yield { choice: event.choices?.[0] ?? null, usage: event.usage ?? null };
    }
  }
}

async function errorOf(response) {
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? said?.detail;
  const wait = response.headers.get("retry-after");
  const again = response.status === 429 && /^\d{1,6}$/.test(wait ?? "") ? ` (again in ${wait} s)` : "";
  const text = typeof message === "string" ? message : `The server answered ${response.status} ${response.statusText}`;
  return new ServerError(text + again, response.status, said?.error?.code ?? null);
}

export async function* eventsOf(body) {
  // server-sent events: each line "data: JSON" is one, "[DONE]" the last
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The connection to the server broke off.");
      });
      if (done) throw new ServerError("The server ended the answer early.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = parsed(data);
        if (event.error) throw new ServerError(event.error.message ?? "The server failed.", 500, event.error.code ?? null);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError("The server sent something that is no event.");
  }
}

export const isChat = (model) => model.chat !== false;

export function bodyOf(model, messages, { sampling = {}, logprobs = false, draw = 0 } = {}) {
  // a request for an answer to messages; draw counts how often it was asked before, and moves the seed
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) if (Number.isFinite(sampling[name])) body[name] = sampling[name];
  if (body.seed !== undefined) body.seed += draw;
  if (!isChat(model)) {
    // a model that continues text reads the turns as one text
    const prompt = messages.filter(({ role }) => role !== "system").map(({ content }) => content).join("");
    return { ...body, prompt, ...(logprobs && { logprobs: ALTERNATIVES }) };
  }
  return { ...body, messages, ...(logprobs && { logprobs: true, top_logprobs: ALTERNATIVES }) };
}

export const lettersOf = (messages) => messages.reduce((sum, { content }) => sum + content.length, 0);

export function shortened(messages, most) {
  // the messages without the oldest, so that at most so many letters are left; null where too many are in the last one.
  // The system's stays, and a user's comes first after it.
  if (lettersOf(messages) <= most) return messages;
  const system = messages.filter(({ role }) => role === "system"), turns = messages.filter(({ role }) => role !== "system");
  let left = lettersOf(messages), from = 0;
  while (from < turns.length - 1 && (left > most || turns[from].role !== "user")) {
    left -= turns[from].content.length;
    from += 1;
  }
  return from && turns[from].role === "user" && left <= most ? [...system, ...turns.slice(from)] : null;
}
