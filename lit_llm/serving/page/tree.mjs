// A conversation as a tree of turns: an edited turn or another answer is a branch beside the first one.
//
// conversation = { id, title, created, changed, system, tools, first, nodes }
//   nodes   Map of turn number -> { id, parent, role, content, next, ... }; `parent` has the smaller number, or is 0
//   first   number of the shown turn that has no parent, `next` of the shown turn after this one; 0 where there is none
// Of a turn's other fields, those of KEPT are stored and the rest (busy, tokens) lives as long as the page.

export const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
export const ROLES = ["user", "assistant", "system", "tool"];
const KEPT = ["model", "sampling", "note", "pair", "blind", "edited", "fields"];
const LONGEST_TITLE = 80;

export const randomId = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");

export function newConversation(system = "", now = Date.now()) {
  return { id: randomId(), title: "", created: now, changed: now, system, tools: null, first: 0, nodes: new Map() };
}

export function add(conversation, parent, role, content, more = {}) {
  // the new turn is the one that is shown after its parent
  const id = nextId(conversation);
  conversation.nodes.set(id, { id, parent, role, content, next: 0, ...more });
  setNext(conversation, parent, id);
  if (!conversation.title && role === "user") conversation.title = titleOf(content);
  return id;
}

export function nextId({ nodes }) {
  // numbers only grow, and a Map keeps its order
  let last = 0;
  for (const id of nodes.keys()) last = id;
  return last + 1;
}

function setNext(conversation, parent, id) {
  if (parent) conversation.nodes.get(parent).next = id;
  else conversation.first = id;
}

export function shownAfter(conversation, parent) {
  return parent ? conversation.nodes.get(parent).next : conversation.first;
}

export function removeLeaf(conversation, id, before = 0) {
  // only a turn that nothing follows; another version is shown again, the one given where it is still there
  const { parent } = conversation.nodes.get(id), shown = shownAfter(conversation, parent);
  conversation.nodes.delete(id);
  if (shown !== id) return;
  const fine = conversation.nodes.get(before)?.parent === parent;
  setNext(conversation, parent, fine ? before : childrenOf(conversation, parent).at(-1) ?? 0);
}

export function childrenMap(conversation) {
  // the children of every turn, in one go
  const children = new Map();
  for (const { id, parent } of conversation.nodes.values()) {
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(id);
  }
  return children;
}

export function childrenOf(conversation, parent) {
  return [...conversation.nodes.values()].filter((node) => node.parent === parent).map((node) => node.id);
}

export function versionsOf(conversation, id) {
  // the turns that stand at the same place, itself among them
  return childrenOf(conversation, conversation.nodes.get(id).parent);
}

export function pathOf(conversation) {
  // numbers of the turns that are shown, the oldest first
  const path = [];
  for (let id = conversation.first; id; id = conversation.nodes.get(id).next) path.push(id);
  return path;
}

export function pathTo(conversation, id) {
  const path = [];
  for (; id; id = conversation.nodes.get(id).parent) path.push(id);
  return path.reverse();
}

export function select(conversation, id) {
  setNext(conversation, conversation.nodes.get(id).parent, id);
}

export function leavesOf(conversation) {
  const parents = new Set([...conversation.nodes.values()].map((node) => node.parent));
  return [...conversation.nodes.keys()].filter((id) => !parents.has(id));
}

export function pairOf(conversation, id) {
  // the two answers, left and right, that were written at once with this one; null where it is alone
  const pair = conversation.nodes.get(id)?.pair;
  if (!pair) return null;
  const both = versionsOf(conversation, id).filter((other) => conversation.nodes.get(other).pair === pair);
  return both.length === 2 ? both : null;
}

export function titleOf(text) {
  const line = text.trim().split("\n", 1)[0].slice(0, 400).replace(/\s+/g, " ").trim();
  const letters = [...line];  // whole characters
  return letters.length > LONGEST_TITLE ? `${letters.slice(0, LONGEST_TITLE - 1).join("")}…` : line;
}

export function plainOf(conversation) {
  // for JSON
  const nodes = [...conversation.nodes.values()].map((node) => {
    const plain = { id: node.id, parent: node.parent, role: node.role, content: node.content, next: node.next };
    for (const name of KEPT) if (node[name]) plain[name] = node[name];
    return plain;
  });
  const { id, title, created, changed, system, tools, first } = conversation;
  return { id, title, created, changed, system, tools, first, nodes };
}

function samplingFrom(plain) {
  return Object.fromEntries(NUMBERS.filter((name) => Number.isFinite(plain?.[name])).map((name) => [name, plain[name]]));
}

const isText = (value) => typeof value === "string";
const isNumber = (value) => Number.isSafeInteger(value) && value >= 0;

export function conversationFrom(plain) {
  // the opposite; what is not as it should be throws, so that no circle and no strange value gets in
  const check = (fine, what) => { if (!fine) throw new Error(`the stored conversation has ${what}`); };
  check(plain !== null && typeof plain === "object", "no fields");
  const { id, title, created, changed, system, tools, first } = plain;
  check(isText(id) && /^[a-z0-9]{1,40}$/.test(id) && isText(title) && isText(system), "no name");
  check(isNumber(created) && isNumber(changed) && isNumber(first), "no time");
  check(Array.isArray(plain.nodes), "no turns");
  const nodes = new Map();
  let last = 0;
  for (const node of plain.nodes) {
    check(node !== null && typeof node === "object" && isNumber(node.id) && node.id > last, "turns without order");
    check(isNumber(node.parent) && (!node.parent || nodes.has(node.parent)), "a turn that follows none");
    check(ROLES.includes(node.role) && isText(node.content) && isNumber(node.next), "a turn without words");
    const fresh = { id: node.id, parent: node.parent, role: node.role, content: node.content, next: node.next };
    if (isText(node.model)) fresh.model = node.model;
    if (isText(node.note)) fresh.note = node.note;
    if (isNumber(node.pair) && node.pair) fresh.pair = node.pair;
    if (node.sampling) fresh.sampling = samplingFrom(node.sampling);
    for (const name of ["edited", "blind"]) if (node[name] === true) fresh[name] = true;
    if (node.fields !== null && typeof node.fields === "object") fresh.fields = node.fields;
    nodes.set((last = node.id), fresh);
  }
  const leads = (from, to) => !to || nodes.get(to)?.parent === from;
  check(leads(0, first) && [...nodes.values()].every((node) => leads(node.id, node.next)), "a turn that leads nowhere");
  return { id, title, created, changed, system, tools: Array.isArray(tools) ? tools : null, first, nodes };
}
