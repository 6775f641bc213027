// What a browser keeps, and what happens where it does not.

import assert from "node:assert/strict";
import test from "node:test";
import { Store } from "PAGE/store.mjs";
import { add, newConversation } from "PAGE/tree.mjs";

class Storage {
  // a browser's, with room for so many letters
  constructor(room = Infinity) {
    this.items = new Map();
    this.room = room;
  }
  get length() { return this.items.size; }
  key(place) { return [...this.items.keys()][place] ?? null; }
  getItem(key) { return this.items.get(key) ?? null; }
  removeItem(key) { this.items.delete(key); }
  setItem(key, value) {
    const rest = [...this.items].filter(([name]) => name !== key).reduce((sum, [name, text]) => sum + name.length + text.length, 0);
    if (rest + key.length + value.length > this.room) throw new DOMException("full", "QuotaExceededError");
    this.items.set(key, value);
  }
}

const talk = (words) => {
  const conversation = newConversation();
  add(conversation, 0, "user", words);
  return conversation;
};
const vote = (conversation, pair, choice, row = null) => ({ conversation, pair, choice, time: 1, row });

test("conversations come back newest first, and go one by one or all", () => {
  const storage = new Storage(), store = new Store(storage), [one, two] = [talk("one"), talk("two")];
  storage.setItem("of somebody else", "x");
  store.save(one, 10);
  store.save(two, 20);
  store.setVote(vote(one.id, 2, "left", { prompt: [] }));
  const again = new Store(storage);
  assert.deepEqual(again.listed().map(({ title }) => title), ["two", "one"]);
  assert.equal(again.voteOn(one.id, 2).choice, "left");
  again.remove(two.id);
  assert.deepEqual(new Store(storage).listed().map(({ title }) => title), ["one"]);
  again.removeAll();
  assert.equal(new Store(storage).listed().length, 0);
  assert.equal(new Store(storage).votes.length, 1);
  again.removeVotes();
  assert.deepEqual([...storage.items.keys()], ["of somebody else"]);
});

test("a full storage is told, and room that becomes free is used", () => {
  const storage = new Storage(700), store = new Store(storage), [one, two] = [talk("x".repeat(200)), talk("y".repeat(200))];
  assert.equal(store.save(one), true);
  assert.equal(store.save(two), false);
  assert.equal(store.state, "full");
  assert.equal(store.listed().length, 2);
  store.remove(one.id);
  assert.equal(store.state, "kept");
  assert.deepEqual(new Store(storage).listed().map(({ id }) => id), [two.id]);
  const brim = new Storage(9);
  brim.items.set("lit_llm.x", "");
  assert.equal(new Store(brim).state, "full");
});

test("a forbidden storage leaves the page as it is", () => {
  for (const broken of [() => { throw new DOMException("no", "SecurityError"); }, null, new Storage(0)]) {
    const store = new Store(broken), one = talk("one");
    assert.equal(store.save(one), false);
    assert.deepEqual([store.state, store.listed().length, store.size()], ["forbidden", 1, 0]);
    assert.deepEqual(store.settings(), {});
    store.setVote(vote(one.id, 1, "left"));
    assert.equal(store.votes.length, 1);
    store.remove(one.id);
    store.removeAll();
    store.removeVotes();
    store.removeSettings();
    assert.equal(store.listed().length + store.votes.length, 0);
  }
});

test("what cannot be read stays where it is, until all is deleted", () => {
  const storage = new Storage();
  for (const [id, text] of [["a", "{"], ["b", "{}"], ["c", JSON.stringify({ id: "d" })]]) storage.setItem(`lit_llm.chat.${id}`, text);
  storage.setItem("lit_llm.votes", '{"length": 3}');
  storage.setItem("lit_llm.settings", "[");
  const store = new Store(storage);
  assert.deepEqual([store.broken, store.listed(), store.votes, store.settings()], [3, [], [], {}]);
  store.removeAll();
  assert.deepEqual(store.keys(), ["lit_llm.votes", "lit_llm.settings"]);
});

test("another window's changes are taken over, its votes with them", () => {
  const storage = new Storage(), here = new Store(storage), there = new Store(storage), one = talk("one");
  there.save(one);
  assert.equal(here.changedElsewhere(`lit_llm.chat.${one.id}`), one.id);
  assert.equal(here.listed().length, 1);
  there.setVote(vote(one.id, 1, "left"));
  here.setVote(vote(one.id, 2, "right"));
  assert.equal(new Store(storage).votes.length, 2);
  here.setVote(vote(one.id, 2, null));
  assert.equal(new Store(storage).votes.length, 1);
  there.remove(one.id);
  here.changedElsewhere(`lit_llm.chat.${one.id}`);
  assert.equal(here.listed().length, 0);
  storage.items.clear();
  assert.equal(here.changedElsewhere(null), null);
});
