// Conversations and votes as rows of .jsonl files, in the forms that SFT, reward models and DPO read, and back.
// A file comes from anywhere: each value of it is looked at and copied, and becomes text, never a key of our own.

import { add, leavesOf, newConversation, pathOf, pathTo, ROLES } from "./tree.mjs";

export const MOST_BYTES = 32 * 2 ** 20;
const MOST_ROWS = 1000;
const MOST_TURNS = 4096;
const DEEPEST = 32;  // values inside each other, in the calls of tools
const MOST_TOLD = 3;
const NAMES = { human: "user", gpt: "assistant", ...Object.fromEntries(ROLES.map((role) => [role, role])) };
const NAME_OF = new Map(Object.entries(NAMES));
// what a turn may have besides its words, and the row besides its turns; it comes out again as it came in
const OF_TURN = ["tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "name", "tool_call_id", "weight", "train", "loss"];
const OF_ROW = new Set(["messages", "conversations", "instruction", "input", "output", "history", "prompt", "completion", "question", "answer", "system", "tools"]);

const whole = (text) => (text.toWellFormed ? text.toWellFormed() : text);  // no half of a surrogate pair

// ---- out ----

export function messagesOf(conversation, path) {
  // the turns of a path in the form of OpenAI and of our rows, the system's first
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const turns = path.map((id) => conversation.nodes.get(id));
  return [...system, ...turns.map(({ role, content, fields }) => ({ role, content, ...fields }))];
}

export function forServer(messages) {
  // what was thought before an answer is not sent again, nor what says whether a turn is to be learned
  return messages.map(({ role, content, tool_calls, function_call, tool_call_id }) => {
    const given = { tool_calls, function_call, tool_call_id };
    return { role, content, ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) };
  });
}

function learnable(messages) {
  // as far as the last answer; null where SFT would read nothing from it, or refuse it
  const end = messages.findLastIndex(({ role }) => role === "assistant") + 1;
  const kept = messages.slice(0, end);
  const speaks = (turn) => turn.content.trim() || (turn.role !== "user" && (turn.tool_calls ?? turn.function_call ?? turn.role !== "assistant"));
  return end && kept.some(({ role }) => role === "user") && kept.every(speaks) ? kept : null;
}

export function rowsOf(conversations, everyBranch = false) {
  // { text, rows, leftOut } of a file for SFT
  const lines = [];
  let leftOut = 0;
  for (const conversation of conversations) {
    const paths = everyBranch ? leavesOf(conversation).map((id) => pathTo(conversation, id)) : [pathOf(conversation)];
    const found = new Set();
    for (const path of paths) {
      const messages = learnable(messagesOf(conversation, path));
      if (messages) found.add(lineOf({ messages, ...(conversation.tools && { tools: conversation.tools }) }));
    }
    if (!found.size) leftOut += 1;
    lines.push(...found);
  }
  return { text: lines.map((line) => `${line}\n`).join(""), rows: lines.length, leftOut };
}

export function lineOf(row) {
  return JSON.stringify(row, (_, value) => (typeof value === "string" ? whole(value) : value));
}

export function preferenceOf(conversation, path, chosen, rejected, chats) {
  // the row of a vote between two answers to the turns of a path; null where reward models and DPO would leave it out
  const words = [chosen, rejected].map(({ content }) => content);
  const messages = messagesOf(conversation, path);
  if (words[0] === words[1] || words.some((text) => !text.trim()) || !messages.length) return null;
  if (!chats) {
    const prompt = messages.filter(({ role }) => role !== "system").map(({ content }) => content).join("");
    return { prompt, chosen: words[0], rejected: words[1] };
  }
  const sides = words.map((content) => [{ role: "assistant", content }]);
  return { prompt: messages, chosen: sides[0], rejected: sides[1] };
}

// ---- in ----

export function conversationsFrom(text, now = Date.now()) {
  // { conversations, notes }; notes say what was left out, and why
  const conversations = [], notes = [], unread = new Map();
  let bad = 0;
  const refuse = (place, error) => {
    bad += 1;
    if (bad <= MOST_TOLD) notes.push(`${place}: ${error.message}`);
  };
  let total = 0;
  for (const [place, read] of rowsIn(text)) {
    total += 1;
    if (total > MOST_ROWS) continue;
    try {
      const row = read();
      conversations.push(conversationOf(row, now));
      for (const name of Object.keys(row)) if (!OF_ROW.has(name)) unread.set(name, (unread.get(name) ?? 0) + 1);
    } catch (error) {
      refuse(place, error);
    }
  }
  if (bad > MOST_TOLD) notes.push(`… and ${bad - MOST_TOLD} more rows that cannot be read`);
  if (total > MOST_ROWS) notes.push(`only the first ${MOST_ROWS} rows were read, of ${total}; split the file`);
  if (unread.size) notes.push(`not kept: ${[...unread.keys()].slice(0, 8).map((name) => name.slice(0, 40)).join(", ")}`);
  if (!total) notes.push("the file has no row");
  return { conversations, notes };
}

function* rowsIn(text) {
  // [place, reader] of each row of .jsonl, or of a list in .json
  const bare = text.replace(/^\ufeff/, "");
  if (bare.trimStart().startsWith("[")) {
    let list = null;
    try {
      list = JSON.parse(bare);
    } catch (error) {
      yield ["the file", () => { throw error; }];
      return;
    }
    for (const [place, row] of list.entries()) yield [`row ${place + 1}`, () => row];
    return;
  }
  let number = 0;
  for (const line of bare.split("\n")) {
    number += 1;
    if (line.trim()) yield [`line ${number}`, () => JSON.parse(line)];
  }
}

function need(fine, problem) {
  if (!fine) throw new Error(problem);
}

function textOf(value, what) {
  need(typeof value === "string", `${what} is no text`);
  return whole(value);
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const own = (row, name) => (Object.hasOwn(row, name) ? row[name] ?? undefined : undefined);

function conversationOf(row, now) {
  need(isObject(row), "the row is no object");
  let turns = turnsOf(row);
  need(turns.length, "there is no turn in it");
  need(turns.length <= MOST_TURNS, `it has ${turns.length} turns; at most ${MOST_TURNS} are read`);
  const system = turns[0].role === "system" ? turns[0].content : textOf(own(row, "system") ?? "", "system");
  if (turns[0].role === "system") turns = turns.slice(1);
  const conversation = newConversation(system, now);
  const tools = own(row, "tools");
  if (tools !== undefined) conversation.tools = plain(typeof tools === "string" ? JSON.parse(tools || "[]") : tools, 0);
  need(conversation.tools === null || Array.isArray(conversation.tools), "tools is no list");
  let parent = 0;
  for (const { role, content, fields } of turns) {
    parent = add(conversation, parent, role, content, fields && { fields });
  }
  return conversation;
}

function turnsOf(row) {
  // the turns of a row in any of the five forms that SFT reads
  const messages = own(row, "messages") ?? own(row, "conversations");
  if (messages !== undefined) {
    need(Array.isArray(messages), "messages is no list");
    return messages.map((turn, place) => turnOf(turn, `message ${place + 1}`));
  }
  const says = (role, content) => ({ role, content });
  const asked = (value, role, name) => (Array.isArray(value)
    ? value.map((turn, place) => turnOf(turn, `message ${place + 1} of ${name}`)) : [says(role, textOf(value, name))]);
  if (own(row, "instruction") !== undefined) {
    const parts = [textOf(row.instruction, "instruction"), textOf(own(row, "input") ?? "", "input")];
    const question = says("user", parts.filter(Boolean).join("\n\n"));
    return [...historyOf(row), question, ...asked(own(row, "output"), "assistant", "output")];
  }
  if (own(row, "prompt") !== undefined) {
    const completion = own(row, "completion");
    const answer = completion === undefined ? [] : asked(completion, "assistant", "completion");
    return [...historyOf(row), ...asked(row.prompt, "user", "prompt"), ...answer];
  }
  need(own(row, "question") !== undefined, `it has none of messages, conversations, instruction, prompt and question`);
  return [...historyOf(row), ...asked(row.question, "user", "question"), ...asked(own(row, "answer"), "assistant", "answer")];
}

function historyOf(row) {
  const rounds = own(row, "history") ?? [];
  need(Array.isArray(rounds), "history is no list");
  return rounds.flatMap((pair) => {
    need(Array.isArray(pair) && pair.length === 2, "history has something other than pairs");
    return pair.map((text, side) => ({ role: side ? "assistant" : "user", content: textOf(text, "history") }));
  });
}

function turnOf(turn, place) {
  need(isObject(turn), `${place} is no object`);
  const sharegpt = own(turn, "from") !== undefined;
  const role = NAME_OF.get(own(turn, sharegpt ? "from" : "role"));
  need(role !== undefined, `${place} has the role ${JSON.stringify(own(turn, sharegpt ? "from" : "role")) ?? "none"}`.slice(0, 200));
  const fields = {};
  for (const name of OF_TURN) if (own(turn, name) !== undefined) fields[name] = plain(turn[name], 0);
  let content = own(turn, sharegpt ? "value" : "content");
  if (Array.isArray(content)) content = content.map((part) => textOf(part?.text, `a part of ${place}`)).join("");
  if (content === undefined && (fields.tool_calls ?? fields.function_call)) content = "";
  const has = Object.keys(fields).length > 0;
  return { role, content: textOf(content, `the content of ${place}`), ...(has && { fields }) };
}

function plain(value, depth) {
  // a copy of a value of JSON
  need(depth <= DEEPEST, `values are more than ${DEEPEST} deep inside each other`);
  if (typeof value === "string") return whole(value);
  if (Array.isArray(value)) return value.map((child) => plain(child, depth + 1));
  if (!isObject(value)) return value;
  need(!Object.hasOwn(value, "__proto__"), "a field is called __proto__");
  return Object.fromEntries(Object.entries(value).map(([name, child]) => [whole(name), plain(child, depth + 1)]));
}
