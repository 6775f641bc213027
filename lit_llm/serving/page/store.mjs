// What this browser keeps: conversations, votes and settings. Where it forbids that, or has no room, they hold until the
// page is closed, and `state` says so.

import { conversationFrom, plainOf } from "./tree.mjs";

const CHAT = "lit_llm.chat.", VOTES = "lit_llm.votes", SETTINGS = "lit_llm.settings";

export class Store {
  // storage is the browser's localStorage, or a function that returns it and may throw
  constructor(storage) {
    this.conversations = new Map();
    this.votes = [];
    this.state = "kept";  // or "full", or "forbidden"
    this.broken = 0;  // conversations that cannot be read; they stay where they are
    this.unsaved = new Set();
    try {
      this.storage = typeof storage === "function" ? storage() : storage;
      this.storage.setItem("lit_llm.try", "1");
      this.storage.removeItem("lit_llm.try");
    } catch {
      // no room for a letter is something else than no storage at all
      this.state = this.storage?.length ? "full" : "forbidden";
      if (this.state === "forbidden") this.storage = null;
    }
    this.load();
  }

  load() {
    for (const key of this.keys()) {
      try {
        if (key.startsWith(CHAT)) this.read(key.slice(CHAT.length));
      } catch {
        this.broken += 1;
      }
    }
    this.votes = this.readVotes();
  }

  keys() {
    if (!this.storage) return [];
    return Array.from({ length: this.storage.length }, (_, place) => this.storage.key(place)).filter((key) => key?.startsWith("lit_llm."));
  }

  read(id) {
    const conversation = conversationFrom(JSON.parse(this.storage.getItem(CHAT + id)));
    if (conversation.id !== id) throw new Error("the stored conversation has another name");
    this.conversations.set(id, conversation);
    return conversation;
  }

  readVotes() {
    const votes = this.plain(VOTES);
    return Array.isArray(votes) ? votes.filter((vote) => typeof vote?.conversation === "string" && Number.isInteger(vote.pair)) : [];
  }

  plain(key) {
    try {
      return JSON.parse(this.storage?.getItem(key) ?? "null");
    } catch {
      return null;
    }
  }

  put(key, value) {
    // false where it is not kept
    if (!this.storage) return false;
    try {
      this.storage.setItem(key, JSON.stringify(value));
      this.unsaved.delete(key);
      if (this.state === "full" && !this.unsaved.size) this.state = "kept";
      return true;
    } catch {
      this.unsaved.add(key);
      this.state = "full";
      return false;
    }
  }

  listed() {
    // the newest first
    return [...this.conversations.values()].sort((one, other) => other.changed - one.changed);
  }

  save(conversation, now = Date.now()) {
    conversation.changed = now;
    this.conversations.set(conversation.id, conversation);
    return this.put(CHAT + conversation.id, plainOf(conversation));
  }

  forget(key) {
    this.unsaved.delete(key);
    try {
      this.storage?.removeItem(key);
    } catch { /* it was never there */ }
  }

  retryUnsaved() {
    // room may have become free
    for (const key of [...this.unsaved]) {
      if (key === VOTES) this.put(key, this.votes);
      const conversation = this.conversations.get(key.slice(CHAT.length));
      if (conversation) this.put(key, plainOf(conversation));
    }
    if (this.state === "full" && !this.unsaved.size) this.state = "kept";
  }

  remove(id) {
    this.conversations.delete(id);
    this.forget(CHAT + id);
    this.retryUnsaved();
  }

  removeAll() {
    // also the broken ones
    this.conversations.clear();
    this.broken = 0;
    for (const key of this.keys()) if (key.startsWith(CHAT)) this.forget(key);
    for (const key of [...this.unsaved]) if (key.startsWith(CHAT)) this.unsaved.delete(key);
    this.retryUnsaved();
  }

  voteOn(conversation, pair) {
    return this.votes.find((vote) => vote.conversation === conversation && vote.pair === pair) ?? null;
  }

  setVote(vote) {
    if (!this.unsaved.has(VOTES) && this.storage) this.votes = this.readVotes();  // another window may have written
    this.votes = this.votes.filter((other) => other.conversation !== vote.conversation || other.pair !== vote.pair);
    if (vote.choice) this.votes.push(vote);
    return this.put(VOTES, this.votes);
  }

  removeVotes() {
    this.votes = [];
    this.forget(VOTES);
    this.retryUnsaved();
  }

  settings() {
    const stored = this.plain(SETTINGS);
    return stored !== null && typeof stored === "object" ? stored : {};
  }

  saveSettings(settings) {
    return this.put(SETTINGS, settings);
  }

  removeSettings() {
    this.forget(SETTINGS);
  }

  changedElsewhere(key) {
    // another window of the page wrote; returns the name of the conversation that it wrote or removed, if it was one
    if (key === null) {
      this.conversations.clear();
      this.load();
      return null;
    }
    if (key === VOTES) this.votes = this.readVotes();
    if (!key.startsWith(CHAT)) return null;
    const id = key.slice(CHAT.length);
    try {
      if (this.storage.getItem(key) === null) this.conversations.delete(id);
      else this.read(id);
    } catch { /* what is known of it stays */ }
    return id;
  }

  size() {
    // bytes that are kept, about
    return this.keys().reduce((sum, key) => sum + 2 * (key.length + (this.storage.getItem(key)?.length ?? 0)), 0);
  }
}
