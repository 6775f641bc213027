// Files of conversations, in and out.

import assert from "node:assert/strict";
import test from "node:test";
import * as rows from "PAGE/rows.mjs";
import { add, newConversation, pathOf, select } from "PAGE/tree.mjs";

const read = (...values) => rows.conversationsFrom(values.map((value) => JSON.stringify(value)).join("\n"));
const turnsOf = (conversation) => rows.messagesOf(conversation, pathOf(conversation)).map(({ role, content }) => `${role}: ${content}`);

test("each form that SFT reads becomes the same turns", () => {
  const wanted = ["system: S", "user: q", "assistant: a"];
  const forms = [
    { messages: [{ role: "system", content: "S" }, { role: "user", content: "q" }, { role: "assistant", content: "a" }] },
    { conversations: [{ from: "human", value: "q" }, { from: "gpt", value: "a" }], system: "S" },
    { instruction: "q", output: "a", system: "S" },
    { prompt: "q", completion: "a", system: "S" },
    { prompt: [{ role: "system", content: "S" }, { role: "user", content: "q" }], completion: [{ role: "assistant", content: "a" }] },
    { question: "q", answer: "a", system: "S" },
  ];
  const { conversations, notes } = read(...forms);
  assert.deepEqual(notes, []);
  assert.equal(conversations.length, forms.length);
  for (const conversation of conversations) assert.deepEqual(turnsOf(conversation), wanted);
  const [alpaca] = read({ instruction: "do", input: "this", output: "o", history: [["x", "y"]] }).conversations;
  assert.deepEqual(turnsOf(alpaca), ["user: x", "assistant: y", "user: do\n\nthis", "assistant: o"]);
  assert.equal(rows.conversationsFrom(`\ufeff [${forms.map((form) => JSON.stringify(form)).join(",\n")}]`).conversations.length, forms.length);
});

test("calls of tools, thoughts and weights come out as they came in", () => {
  const call = { id: "1", type: "function", function: { name: "f", arguments: { a: [1, null, "x"] } } };
  const row = {
    messages: [
      { role: "user", content: "q" }, { role: "assistant", content: "", tool_calls: [call] },
      { role: "tool", content: "4", tool_call_id: "1" }, { role: "assistant", content: "a", reasoning_content: "hm", weight: 0 },
    ],
    tools: [{ type: "function", function: { name: "f" } }],
  };
  const { conversations } = read(row);
  const { text, leftOut } = rows.rowsOf(conversations);
  assert.deepEqual(JSON.parse(text), row);
  assert.equal(leftOut, 0);
  const sent = rows.forServer(row.messages);
  assert.deepEqual(sent[3], { role: "assistant", content: "a" });
  assert.deepEqual(sent[1], row.messages[1]);
});

test("what SFT would refuse is left out, and counted", () => {
  const talk = (...turns) => {
    const conversation = newConversation();
    turns.reduce((parent, [role, content]) => add(conversation, parent, role, content), 0);
    return conversation;
  };
  const open = talk(["user", "q"], ["assistant", "a"], ["user", "more"]);
  assert.deepEqual(JSON.parse(rows.rowsOf([open]).text).messages.length, 2);
  const bad = [talk(["user", "q"]), talk(["user", "q"], ["assistant", " "]), talk(["user", ""], ["assistant", "a"]), talk(["assistant", "a"])];
  assert.deepEqual(rows.rowsOf(bad), { text: "", rows: 0, leftOut: 4 });
  const half = talk(["user", "\ud83d"], ["assistant", "a"]);
  assert.equal(rows.rowsOf([half]).text.includes("\\ud83d"), false);
});

test("every branch is a row, if that is asked for", () => {
  const conversation = newConversation(), question = add(conversation, 0, "user", "q");
  const first = add(conversation, question, "assistant", "a");
  add(conversation, question, "assistant", "b");
  add(conversation, add(conversation, question, "assistant", "c"), "user", "and?");
  select(conversation, first);
  assert.equal(JSON.parse(rows.rowsOf([conversation]).text).messages[1].content, "a");
  const lines = rows.rowsOf([conversation], true).text.trim().split("\n").map((line) => JSON.parse(line).messages.at(-1).content);
  assert.deepEqual(lines, ["a", "b", "c"]);
});

test("a vote is a row of a prompt and two answers", () => {
  const conversation = newConversation("S"), question = add(conversation, 0, "user", "q");
  const row = rows.preferenceOf(conversation, [question], { content: "good" }, { content: "bad" }, true);
  assert.deepEqual(row, {
    prompt: [{ role: "system", content: "S" }, { role: "user", content: "q" }],
    chosen: [{ role: "assistant", content: "good" }], rejected: [{ role: "assistant", content: "bad" }],
  });
  assert.deepEqual(rows.preferenceOf(conversation, [question], { content: "x" }, { content: "y" }, false), { prompt: "q", chosen: "x", rejected: "y" });
  assert.equal(rows.preferenceOf(conversation, [question], { content: "x" }, { content: "x" }, true), null);
  assert.equal(rows.preferenceOf(conversation, [question], { content: " " }, { content: "x" }, true), null);
});

test("rows of strangers are refused one by one, and said where", () => {
  const fine = JSON.stringify({ messages: [{ role: "user", content: "q" }] });
  const bad = [
    "{", "3", "null", "[1]", "{}", '{"messages": 3}', '{"messages": []}', '{"messages": [null]}',
    '{"messages": [{"role": "__proto__", "content": "x"}]}', '{"messages": [{"role": "toString", "content": "x"}]}',
    '{"messages": [{"role": "user"}]}', '{"messages": [{"role": "user", "content": {"a": 1}}]}',
    '{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"__proto__": {"polluted": 1}}]}]}',
    `{"messages": [{"role": "assistant", "content": "", "tool_calls": ${"[".repeat(5000)}${"]".repeat(5000)}}]}`,
    `{"messages": [{"role": "assistant", "content": "", "tool_calls": ${"[".repeat(40)}${"]".repeat(40)}}]}`,
    '{"instruction": "x"}', '{"question": 1, "answer": "x"}', '{"history": 3, "question": "q", "answer": "x"}', '{"prompt": "q", "tools": "{"}',
  ];
  const { conversations, notes } = rows.conversationsFrom([fine, ...bad, fine].join("\n"));
  assert.equal(conversations.length, 2);
  assert.equal(notes.length, 4);
  assert.match(notes[0], /^line 2: /);
  assert.match(notes[3], /16 more rows/);
  assert.equal({}.polluted, undefined);
  assert.match(rows.conversationsFrom("[{").notes[0], /^the file: /);
  assert.match(rows.conversationsFrom("").notes[0], /no row/);
  const pollute = rows.conversationsFrom('{"__proto__": {"messages": 1}, "messages": [{"role": "user", "content": "q", "__proto__": {"x": 1}}], "id": 7}');
  assert.deepEqual(pollute.notes, ["not kept: __proto__, id"]);
  assert.equal({}.x, undefined);
});

test("a file with too many rows is read as far as the limit, and says so", () => {
  const { conversations, notes } = rows.conversationsFrom('{"question": "q", "answer": "a"}\n'.repeat(1003));
  assert.equal(conversations.length, 1000);
  assert.match(notes[0], /first 1000 rows .* of 1003/);
  const long = { messages: Array.from({ length: 5000 }, () => ({ role: "user", content: "x" })) };
  assert.match(read(long).notes[0], /5000 turns/);
});
