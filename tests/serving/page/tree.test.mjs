// Branches of a conversation.

import assert from "node:assert/strict";
import test from "node:test";
import * as tree from "PAGE/tree.mjs";

function talk() {
  const conversation = tree.newConversation("Be brief.", 5);
  const question = tree.add(conversation, 0, "user", "\n  Why?  \nReally");
  const answer = tree.add(conversation, question, "assistant", "So.");
  return { conversation, question, answer };
}

test("an edited turn is a branch, and a switch brings back what followed the other", () => {
  const { conversation, question, answer } = talk();
  const other = tree.add(conversation, 0, "user", "How?");
  assert.deepEqual(tree.pathOf(conversation), [other]);
  assert.deepEqual(tree.versionsOf(conversation, other), [question, other]);
  tree.select(conversation, question);
  assert.deepEqual(tree.pathOf(conversation), [question, answer]);
  assert.deepEqual(tree.leavesOf(conversation), [answer, other]);
  assert.deepEqual(tree.pathTo(conversation, answer), [question, answer]);
  assert.equal(conversation.title, "Why?");
});

test("an answer that was not written gives its place back to the one before", () => {
  const { conversation, question, answer } = talk();
  tree.add(conversation, question, "assistant", "second");
  tree.select(conversation, answer);
  const third = tree.add(conversation, question, "assistant", "");
  tree.removeLeaf(conversation, third, answer);
  assert.equal(tree.shownAfter(conversation, question), answer);
  tree.removeLeaf(conversation, answer);
  assert.deepEqual(tree.pathOf(conversation).length, 2);
});

test("a pair is two answers that were written at once", () => {
  const { conversation, question, answer } = talk();
  const left = tree.add(conversation, question, "assistant", "a", { pair: 3 });
  const right = tree.add(conversation, question, "assistant", "b", { pair: 3 });
  assert.deepEqual(tree.pairOf(conversation, right), [left, right]);
  assert.equal(tree.pairOf(conversation, answer), null);
});

test("what is stored comes back, without what lives as long as the page", () => {
  const { conversation, question } = talk();
  tree.add(conversation, question, "assistant", "x", { busy: true, tokens: [1], pair: 2, blind: true, sampling: { top_k: 3, evil: 1 } });
  const plain = JSON.parse(JSON.stringify(tree.plainOf(conversation))), back = tree.conversationFrom(plain);
  assert.deepEqual(tree.pathOf(back), tree.pathOf(conversation));
  assert.equal(back.system, "Be brief.");
  const last = back.nodes.get(3);
  assert.deepEqual([last.busy, last.tokens, last.sampling, last.blind], [undefined, undefined, { top_k: 3 }, true]);
});

test("a stored conversation that is none is refused", () => {
  const plain = () => JSON.parse(JSON.stringify(tree.plainOf(talk().conversation)));
  const changes = [
    (c) => { c.nodes[0].parent = 2; }, (c) => { c.nodes[1].parent = 9; }, (c) => { c.nodes[1].next = 1; },
    (c) => { c.first = 2; }, (c) => { c.nodes[1].id = 1; }, (c) => { c.nodes[0].role = "constructor"; },
    (c) => { c.nodes[0].content = 3; }, (c) => { c.id = "../x"; }, (c) => { c.nodes = {}; }, (c) => { c.changed = "now"; },
    (c) => { c.nodes[0] = null; },
    (c) => {  // a circle: the second follows the third, which follows it
      c.nodes.push({ ...c.nodes[1], id: 3, parent: 2 }, { ...c.nodes[1], parent: 3 });
      c.nodes[0].next = 0;
    },
  ];
  tree.conversationFrom(plain());
  for (const change of changes) {
    const broken = plain();
    change(broken);
    assert.throws(() => tree.conversationFrom(broken), /stored conversation/, change.toString());
  }
  assert.throws(() => tree.conversationFrom(null));
  const polluted = JSON.parse(`{"__proto__":{"x":1},${JSON.stringify(plain()).slice(1)}`);
  assert.equal(tree.conversationFrom(polluted).x, undefined);
});

test("a thousand turns, and titles of whole characters", () => {
  const conversation = tree.newConversation();
  for (let n = 0, id = 0; n < 1000; n += 1) id = tree.add(conversation, id, n % 2 ? "assistant" : "user", `${n}`);
  assert.equal(tree.pathOf(conversation).length, 1000);
  assert.equal(tree.childrenMap(conversation).size, 1000);
  assert.equal([...tree.titleOf("😀".repeat(300))].length, 80);
  assert.equal(tree.titleOf("😀".repeat(300)).isWellFormed(), true);
});
