// Calls of tools, thoughts, tokens and requests.

import assert from "node:assert/strict";
import test from "node:test";
import { Api, bodyOf, eventsOf, shortened } from "PAGE/api.mjs";
import { blocksOfAnswer, callsOf, mergeCalls, partsOf } from "PAGE/parts.mjs";
import { alone, inFlow, level, percent, summaryOf, tokensOf } from "PAGE/tokens.mjs";

const kinds = (text) => partsOf(text).map(([kind, inside]) => `${kind}: ${inside.trim()}`);

test("calls of tools are found where a model writes them", () => {
  assert.deepEqual(kinds('Wait. <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\nDone.'), [
    "words: Wait.", 'call: {"name": "f", "arguments": {"a": 1}}', "words: Done."]);
  assert.deepEqual(kinds('[TOOL_CALLS] [{"name": "f", "arguments": {}}]'), ['call: [{"name": "f", "arguments": {}}]']);
  assert.deepEqual(kinds('<|python_tag|>{"name": "f", "parameters": {}}'), ['call: {"name": "f", "parameters": {}}']);
  assert.deepEqual(kinds(' {"name": "f", "parameters": {"x": 2}}'), ['call: {"name": "f", "parameters": {"x": 2}}']);
  assert.deepEqual(callsOf('[{"name": "f", "arguments": {"a": 1}}, {"function": {"name": "g", "arguments": "{\\"b\\": 2}"}}]'), [
    ["f", '{\n  "a": 1\n}'], ["g", '{\n  "b": 2\n}']]);
  assert.deepEqual(callsOf('{"name": "f", "argu'), [["", '{"name": "f", "argu']]);
  for (const broken of ["null", "3", "[]", "[null]", '{"name": 3}']) assert.deepEqual(callsOf(broken), [["", broken]]);
});

test("what speaks of calls is none", () => {
  for (const text of ["use `<tool_call>` here", "```\n<tool_call>\n{}\n</tool_call>\n```", '{"name": "Ann", "age": 3}', "a <think> b", ""]) {
    assert.deepEqual(partsOf(text).map(([kind]) => kind), ["words"], text);
  }
  const after = '```\n<tool_call>{}\n```\n<tool_call>{"name": "f"}';
  assert.deepEqual(partsOf(after).map(([kind]) => kind), ["words", "call"]);
});

test("a call and a thought that are being written are shown already", () => {
  const text = '<think>\nhm</think>\n\nSo: <tool_call>\n{"name": "f", "arguments": {"q": "<b>"}}</tool_call>';
  for (let end = 0; end <= text.length; end += 1) blocksOfAnswer(text.slice(0, end));
  assert.deepEqual(partsOf("<think>\nhm").map(([kind]) => kind), ["thought"]);
  assert.deepEqual(blocksOfAnswer(text).map(([[kind, , about]]) => `${kind} ${about ?? ""}`.trim()), ["thought", "p", "call f"]);
  const fields = { reasoning: "first", tool_calls: [{ function: { name: "g", arguments: "{}" } }] };
  assert.deepEqual(blocksOfAnswer("a", fields).map(([[kind]]) => kind), ["thought", "p", "call"]);
});

test("no text is slow to take apart", () => {
  for (const part of ["<tool_call>", "<think>\n", "<tool_call>{", "[TOOL_CALLS]", "```\n<tool_call>{}\n", "</tool_call>", '{"name"']) {
    blocksOfAnswer(part.repeat(100_000 / part.length));
  }
});

test("pieces of calls are put together, and a strange place is none", () => {
  const calls = mergeCalls([], [{ index: 0, id: "x", function: { name: "f", arguments: '{"a"' } }]);
  mergeCalls(calls, [{ index: 0, function: { arguments: ": 1}" } }, { index: 1e9, function: { name: "g" } }, { index: "__proto__" }, null]);
  assert.deepEqual(calls[0], { type: "function", id: "x", function: { name: "f", arguments: '{"a": 1}' } });
  assert.equal(calls.length, 4);
  assert.deepEqual(mergeCalls([], "x"), []);
});

test("tokens of both kinds of answer have shares and alternatives", () => {
  const entry = (token, logprob, bytes = [...new TextEncoder().encode(token)]) => ({ token, logprob, bytes });
  const chat = tokensOf({ logprobs: { content: [{ ...entry(" a", Math.log(0.25)), top_logprobs: [entry("b", Math.log(0.5)), entry("\ufffd", -9999, [0xe2, 0x98])] }] } });
  assert.equal(chat[0].text, " a");
  assert.ok(Math.abs(chat[0].share - 0.25) < 1e-9);
  assert.deepEqual(chat[0].others[1], { text: "⟨e2⟩⟨98⟩", share: 0 });
  const texts = tokensOf({ logprobs: { tokens: ["x", "bytes:\\xe2"], token_logprobs: [-1, -2], top_logprobs: [{ y: -0.5, x: -1 }, null] } });
  assert.deepEqual(texts.map(({ text }) => text), ["x", "⟨e2⟩"]);
  assert.deepEqual(texts[0].others.map(({ text }) => text), ["y", "x"]);
  assert.deepEqual([tokensOf(null), tokensOf({}), tokensOf({ logprobs: null })], [[], [], []]);
  assert.equal(summaryOf([{ share: 0.5 }, { share: 0.125 }]), "perplexity 4.00");
  assert.equal(summaryOf([]), "");
});

test("nothing of a token is invisible, and shares are short", () => {
  assert.equal(alone(" a\n\t\u202e\u0000"), "␣a↵⇥⟨U+202e⟩⟨U+0000⟩");
  assert.equal(alone(""), "∅");
  assert.equal(inFlow("a\nb"), "a↵\nb");
  assert.deepEqual([0, 0.0001, 0.043, 0.0994, 0.43, 0.996, 0.9999, 1].map(percent), ["0%", "<0.1%", "4.3%", "9.9%", "43%", "99.6%", "99.9+%", "100%"]);
  assert.deepEqual([0, 0.1, 0.5, 0.7, 1].map(level), [0, 1, 2, 3, 4]);
});

test("a request has what was set, and nothing else", () => {
  const messages = [{ role: "system", content: "S" }, { role: "user", content: "q" }];
  const chat = bodyOf({ id: "m" }, messages, { sampling: { temperature: 0, seed: 5, top_k: undefined, evil: 3 }, draw: 2, logprobs: true });
  assert.deepEqual(chat, {
    model: "m", stream: true, stream_options: { include_usage: true }, temperature: 0, seed: 7, messages, logprobs: true, top_logprobs: 8,
  });
  const text = bodyOf({ id: "m", chat: false }, [...messages, { role: "assistant", content: "a" }], { logprobs: true });
  assert.deepEqual([text.prompt, text.messages, text.logprobs], ["qa", undefined, 8]);
});

test("the oldest turns go first, the system's and the last stay", () => {
  const turn = (role, size) => ({ role, content: "x".repeat(size) });
  const all = [turn("system", 5), turn("user", 100), turn("assistant", 100), turn("user", 50), turn("assistant", 10), turn("user", 9)];
  assert.equal(shortened(all, 1000), all);
  assert.deepEqual(shortened(all, 200).map(({ content }) => content.length), [5, 50, 10, 9]);
  assert.deepEqual(shortened(all, 20).map(({ content }) => content.length), [5, 9]);
  assert.equal(shortened(all, 10), null);
});

const streamOf = (...parts) => new ReadableStream({
  start(controller) {
    for (const part of parts) controller.enqueue(typeof part === "string" ? new TextEncoder().encode(part) : part);
    controller.close();
  },
});

async function eventsIn(...parts) {
  const events = [];
  for await (const event of eventsOf(streamOf(...parts))) events.push(event);
  return events;
}

test("events are put together from any pieces", async () => {
  const bytes = new TextEncoder().encode('data: {"a": "é😀"}\r\n\r\n: ping\n\ndata: {"b": 1}\n\ndata: [DONE]\n\n');
  assert.deepEqual(await eventsIn(...Array.from(bytes, (byte) => Uint8Array.of(byte))), [{ a: "é😀" }, { b: 1 }]);
  await assert.rejects(eventsIn('data: {"a": 1}\n\n'), /ended the answer early/);
  await assert.rejects(eventsIn('data: {"error": {"message": "no"}}\n\n'), /no/);
  await assert.rejects(eventsIn("data: {\n\n"), /no event/);
});

test("what a server answers becomes a sentence", async () => {
  const asked = [], api = new Api("http://localhost/chat/", (wants) => asked.push(wants));
  const answers = async (status, body, headers = {}) => {
    globalThis.fetch = async (url, options) => {
      assert.equal(String(url), "http://localhost/chat/v1/models");
      assert.equal(options.headers.Authorization, api.key ? "Bearer k" : undefined);
      return new Response(body, { status, headers });
    };
    return api.models();
  };
  await assert.rejects(answers(401, "{}"), /asks for an API key/);
  api.key = "k";
  await assert.rejects(answers(401, "{}"), /does not accept/);
  await assert.rejects(answers(429, '{"error": {"message": "slow down"}}', { "Retry-After": "3" }), /slow down \(again in 3 s\)/);
  await assert.rejects(answers(502, "<html>"), /answered 502/);
  await assert.rejects(answers(200, '{"data": [{"id": 3}]}'), /lists no model/);
  assert.deepEqual(await answers(200, '{"data": [{"id": "m"}, null]}'), [{ id: "m" }]);
  assert.deepEqual(asked, [true, true, false, false, false, false]);
});
