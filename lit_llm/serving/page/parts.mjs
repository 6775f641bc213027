// The parts of an answer: its words, its thoughts, and the calls of tools that it writes.

import { FENCE, markdownOf } from "./markdown.mjs";

const BEGIN = /<(tool_call|think)>|\[TOOL_CALLS\]|<\|python_tag\|>/g;
const END = { tool_call: "</tool_call>", think: "</think>" };

export function partsOf(text) {
  // [kind, text, source] with kind "words", "thought" or "call"; a part without an end is still being written
  const whole = wholeCall(text);
  if (whole) return [["call", whole, text]];
  const parts = [], fenced = fencesIn(text);
  let at = 0, from = 0;
  BEGIN.lastIndex = 0;
  for (let found = BEGIN.exec(text); found; found = BEGIN.exec(text)) {
    const inside = found.index + found[0].length, kind = found[1] === "think" ? "thought" : "call";
    const isCall = kind === "call" && /^\s*(?:[[{]|$)/.test(text.slice(inside, inside + 99));
    const isThought = kind === "thought" && /(?:^|\n)\s*$/.test(text.slice(Math.max(0, found.index - 99), found.index));
    if (!(isCall || isThought) || fenced(found.index)) continue;
    const end = END[found[1]] ? text.indexOf(END[found[1]], inside) : -1;
    from = end < 0 ? text.length : end + END[found[1]].length;
    if (text.slice(at, found.index).trim()) parts.push(["words", text.slice(at, found.index)]);
    parts.push([kind, text.slice(inside, end < 0 ? text.length : end), text.slice(found.index, from)]);
    BEGIN.lastIndex = at = from;
  }
  if (text.slice(at).trim() || !parts.length) parts.push(["words", text.slice(at)]);
  return parts;
}

function wholeCall(text) {
  // an answer that is nothing but a call, as of Llama 3.1
  if (!/^\s*\{\s*"(?:name|type)"/.test(text)) return null;
  const call = jsonOf(text);
  return typeof call?.name === "string" && (call.parameters ?? call.arguments) instanceof Object ? text : null;
}

function fencesIn(text) {
  // whether a place stands in fenced code, which may show how a call is written
  if (!/^ {0,3}(?:```|~~~)/m.test(text)) return () => false;
  const ranges = [];
  let at = 0, mark = null;
  for (const line of text.split("\n")) {
    const fence = FENCE.exec(line);
    if (mark === null && fence) {
      mark = fence[2];
      ranges.push([at, Infinity]);
    } else if (mark !== null && line.trim().startsWith(mark) && line.trim() === mark[0].repeat(line.trim().length)) {
      ranges.at(-1)[1] = at + line.length;
      mark = null;
    }
    at += line.length + 1;
  }
  return (place) => ranges.some(([from, to]) => place >= from && place < to);
}

function jsonOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

export function callsOf(text) {
  // [name, arguments as text] of each call in the text of a part; the text itself where it is not (yet) JSON
  const value = jsonOf(text);
  const calls = (Array.isArray(value) ? value : [value]).map((call) => call?.function ?? call);
  if (!calls.length || !calls.every((call) => typeof call?.name === "string")) return [["", text.trim()]];
  return calls.map((call) => [call.name, written(call.arguments ?? call.parameters ?? {})]);
}

function written(given) {
  // arguments are an object, or the JSON of one as text
  const value = typeof given === "string" ? jsonOf(given) ?? given : given;
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

export function blocksOfAnswer(text, fields = null) {
  // trees as of Markdown; ["call", [arguments], name] and ["thought", [text]] besides
  const blocks = [];
  const addCalls = (calls, source) => calls.forEach(([name, words], n) => {
    blocks.push([["call", [words], name], `${n}:${source}`]);
  });
  const thoughts = fields && (fields.reasoning_content ?? fields.reasoning ?? fields.thinking);
  if (typeof thoughts === "string" && thoughts) blocks.push([["thought", [thoughts]], thoughts]);
  for (const [kind, inside, source] of partsOf(text)) {
    if (kind === "words") blocks.push(...markdownOf(inside));
    else if (kind === "thought") blocks.push([["thought", [inside.trim()]], source]);
    else addCalls(callsOf(inside), source);
  }
  if (fields?.tool_calls) {
    const source = JSON.stringify(fields.tool_calls);
    addCalls(callsOf(source), source);
  }
  return blocks;
}

export function mergeCalls(calls, delta) {
  // what a piece of a stream adds to the calls of an answer, in OpenAI's form
  for (const piece of Array.isArray(delta) ? delta : []) {
    const place = Number.isInteger(piece?.index) && piece.index >= 0 && piece.index < 128 ? piece.index : calls.length;
    while (calls.length <= place) calls.push({ type: "function", function: { name: "", arguments: "" } });
    if (typeof piece?.id === "string") calls[place].id = piece.id;
    calls[place].function.name += piece?.function?.name ?? "";
    calls[place].function.arguments += piece?.function?.arguments ?? "";
  }
  return calls;
}
