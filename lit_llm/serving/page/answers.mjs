// Asking for an answer and writing it down, piece by piece, into the tree of its conversation.

import { bodyOf, isChat, lettersOf, shortened } from "./api.mjs";
import { mergeCalls } from "./parts.mjs";
import { forServer, messagesOf } from "./rows.mjs";
import { summaryOf, tokensOf } from "./tokens.mjs";
import { add, pathTo, removeLeaf, shownAfter } from "./tree.mjs";

const TOO_LONG = "context_length_exceeded";
const LESS = 0.75;  // letters that are tried where the last were too many
const NEARLY_FULL = 0.9;
const SAVE_EVERY = 3000;  // milliseconds

export class Writer {
  // app: api, store, view, changed(conversation)
  constructor(app) {
    this.app = app;
    this.running = new Map();  // name of a conversation -> the AbortControllers of its answers
    this.room = new WeakMap();  // conversation -> letters that fit into the context, where that is known
  }

  isBusy(conversation) {
    return this.running.has(conversation.id);
  }

  stop(conversation) {
    for (const controller of this.running.get(conversation.id) ?? []) controller.abort();
  }

  begin(conversation) {
    const controller = new AbortController();
    if (!this.running.has(conversation.id)) this.running.set(conversation.id, new Set());
    this.running.get(conversation.id).add(controller);
    return controller;
  }

  end(conversation, controller) {
    const controllers = this.running.get(conversation.id);
    controllers.delete(controller);
    if (!controllers.size) this.running.delete(conversation.id);
  }

  async write(conversation, parent, { model, sampling, draw = 0, logprobs = false, more = {} }) {
    // the answer to the turns as far as `parent`, as a new turn after it.
    // Returns { id, error }: no id where nothing was written, and the error's text where there was one.
    const before = shownAfter(conversation, parent);
    const id = add(conversation, parent, "assistant", "", { model: model.id, busy: true, ...more });
    const node = conversation.nodes.get(id), controller = this.begin(conversation);
    const answer = { began: performance.now(), first: 0, usage: null, reason: null, left: 0, saved: performance.now() };
    let message = "";
    this.app.changed(conversation);
    try {
      const pieces = this.pieces(conversation, parent, model, { sampling, draw, logprobs }, controller.signal, answer);
      for await (const { choice, usage } of pieces) {
        this.take(node, choice, usage, answer);
        if (performance.now() - answer.saved > SAVE_EVERY && this.app.store.conversations.has(conversation.id)) {
          answer.saved = performance.now();  // what is there outlasts a page that is closed
          this.app.store.save(conversation);
        }
        this.app.view.update(conversation, id);
      }
    } catch (error) {
      answer.reason = error.name === "AbortError" ? "stopped" : "broken off";
      if (answer.reason === "broken off") message = error.message;
    }
    this.end(conversation, controller);
    delete node.busy;
    const whole = answer.reason !== "stopped" && answer.reason !== "broken off";
    const written = whole || node.content !== "" || Boolean(node.fields);
    if (written) node.note = noteOf(node, answer, whole);
    else if (conversation.nodes.has(id)) removeLeaf(conversation, id, before);
    if (answer.usage?.total_tokens > NEARLY_FULL * model.context_length) {
      this.room.set(conversation, LESS * lettersOf(messagesOf(conversation, pathTo(conversation, written ? id : parent))));
    }
    this.app.changed(conversation);
    return { id: written ? id : 0, error: message };
  }

  async *pieces(conversation, parent, model, options, signal, answer) {
    // asks again with fewer turns where they are too long for the model
    const all = forServer(messagesOf(conversation, pathTo(conversation, parent)));
    let messages = (isChat(model) && shortened(all, this.room.get(conversation) ?? Infinity)) || all;
    for (;;) {
      answer.left = all.length - messages.length;
      try {
        yield* this.app.api.answer(model, bodyOf(model, messages, options), signal);
        return;
      } catch (error) {
        const fewer = error.code === TOO_LONG && isChat(model) ? shortened(messages, LESS * lettersOf(messages)) ?? lastOf(messages) : null;
        if (!fewer) throw error;
        this.room.set(conversation, lettersOf(fewer));
        messages = fewer;
      }
    }
  }

  take(node, choice, usage, answer) {
    const text = choice?.delta?.content ?? choice?.text ?? "";
    answer.first ||= text && performance.now();
    node.content += text;
    if (choice?.delta?.tool_calls) {
      node.fields = { ...node.fields, tool_calls: mergeCalls(node.fields?.tool_calls ?? [], choice.delta.tool_calls) };
    }
    const tokens = tokensOf(choice);
    if (tokens.length) (node.tokens ??= []).push(...tokens);
    answer.reason = choice?.finish_reason ?? answer.reason;
    answer.usage = usage ?? answer.usage;
  }
}

function lastOf(messages) {
  // the system's and the last turn, if that is less than all
  const kept = messages.filter(({ role }, place) => role === "system" || place === messages.length - 1);
  return kept.length < messages.length ? kept : null;
}

function noteOf(node, answer, whole) {
  const now = performance.now(), notes = [];
  if (whole && !node.content && !node.fields) notes.push("empty answer");
  if (answer.usage) {
    const { completion_tokens: count } = answer.usage, seconds = (now - answer.began) / 1000;
    notes.push(`${count} ${count === 1 ? "token" : "tokens"}`, `${(count / seconds).toFixed(1)} tokens/s`);
    if (answer.first) notes.push(`first after ${((answer.first - answer.began) / 1000).toFixed(1)} s`);
  }
  if (node.tokens) notes.push(summaryOf(node.tokens));
  if (answer.left) notes.push(`without the oldest ${answer.left} turns, for which the context has no room`);
  if (answer.reason === "length") notes.push("cut at max tokens or the end of the context");
  if (!whole) notes.push(answer.reason);
  return notes.filter(Boolean).join(" · ");
}
