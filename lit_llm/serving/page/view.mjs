// The conversation that is shown: its turns from the first to the last, two answers side by side at the end.

import { button, byId, make, say } from "./elements.mjs";
import { hideTip } from "./tokenview.mjs";
import { childrenMap, pairOf, pathOf, shownAfter } from "./tree.mjs";
import { Turn } from "./turns.mjs";

const NEAR = 40;  // pixels from the end that count as the end
const CHOICES = [["left", "A is better"], ["right", "B is better"], ["both", "Both are good"], ["neither", "Neither is good"]];
const SAID = { left: "You chose A.", right: "You chose B.", both: "You said that both are good.", neither: "You said that neither is good." };

export class View {
  // app: conversation, isBusy(), chats(), voteOn(pair), saysWhyNoVote(pair); actions: edit, again, select, choose, vote
  constructor(app, actions) {
    this.app = app;
    this.actions = actions;
    this.list = byId("turns");
    this.scroller = byId("scroller");
    this.turns = new Map();  // number of a turn -> Turn
    this.items = [];  // [key, element], in the order of the page
    this.atEnd = true;
    this.frames = new Set();
    this.scroller.addEventListener("scroll", () => this.looked(), { passive: true });
    byId("to-end").addEventListener("click", () => {
      this.scroller.scrollTop = this.scroller.scrollHeight;
      byId("message").focus({ preventScroll: true });
    });
  }

  looked() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    byId("to-end").hidden = this.atEnd;
  }

  open() {
    // another conversation
    hideTip();
    this.turns.clear();
    this.items = [];
    this.list.replaceChildren();
    this.render();
    this.settleAtEnd(4);
  }

  settleAtEnd(frames) {
    // turns have their true height only once they are seen
    this.followEnd(true);
    if (frames) requestAnimationFrame(() => this.settleAtEnd(frames - 1));
  }

  render() {
    const { conversation } = this.app, path = pathOf(conversation), children = childrenMap(conversation);
    const pair = path.length ? pairOf(conversation, path.at(-1)) : null;
    const wanted = path.map((id) => `turn ${id}`);
    if (pair) wanted[wanted.length - 1] = `pair ${pair[0]}`;
    let same = 0;
    while (same < wanted.length && this.items[same]?.[0] === wanted[same]) same += 1;
    const kept = pair ? [...path.slice(0, -1), ...pair] : path, alive = new Set(kept);
    for (const id of [...this.turns.keys()]) if (!alive.has(id)) this.turns.delete(id);
    for (const [, element] of this.items.splice(same)) element.remove();
    for (let place = same; place < wanted.length; place += 1) {
      const element = wanted[place].startsWith("pair") ? this.newPair(pair) : this.turnOf(path[place]).element;
      this.items.push([wanted[place], element]);
      this.list.append(element);
    }
    const busy = this.app.isBusy(), chats = this.app.chats();
    path.forEach((id, place) => {
      if (pair && place === path.length - 1) return;
      const ids = children.get(conversation.nodes.get(id).parent).filter((other) => this.isVersion(other, id));
      this.turnOf(id).refresh({ ids, busy, chats });
    });
    if (pair) this.refreshPair(pair, busy, chats);
    this.list.classList.toggle("document", !chats);
  }

  isVersion(other, id) {
    return this.app.conversation.nodes.get(other).role === this.app.conversation.nodes.get(id).role;
  }

  turnOf(id) {
    if (!this.turns.has(id)) this.turns.set(id, new Turn(this.app.conversation.nodes.get(id), this.actions));
    return this.turns.get(id);
  }

  newPair(pair) {
    const element = make("section", "pair", "", { "aria-label": "Two answers to compare" }), sides = make("div", "sides");
    sides.append(...pair.map((id) => this.turnOf(id).element));
    this.voteBar = make("div", "vote", "", { role: "group", "aria-label": "Which answer is better?" });
    this.voteBar.dataset.state = "";
    element.append(sides, this.voteBar);
    return element;
  }

  refreshPair(pair, busy, chats) {
    const { conversation } = this.app, nodes = pair.map((id) => conversation.nodes.get(id));
    const vote = this.app.voteOn(nodes[0].pair);
    pair.forEach((id, side) => {
      const label = `Answer ${"AB"[side]}`, hidden = Boolean(nodes[side].blind && !vote);
      const turn = this.turnOf(id);
      turn.refresh({ label, busy, chats, hidden, inPair: true });
      turn.element.classList.toggle("preferred", vote?.choice === ["left", "right"][side]);
    });
    const why = busy ? "" : this.app.saysWhyNoVote(nodes);
    const shown = shownAfter(conversation, nodes[0].parent);
    const state = busy ? "busy" : vote?.choice ?? `open ${why} ${shown}`;
    if (this.voteBar.dataset.state === state) return;
    const focused = this.voteBar.contains(document.activeElement);
    this.voteBar.dataset.state = state;
    if (busy) this.voteBar.replaceChildren();
    else if (vote) this.voteBar.replaceChildren(make("span", "", SAID[vote.choice]), button("Change", () => this.actions.vote(pair, null)));
    else if (why) this.voteBar.replaceChildren(make("span", "soft", why), ...pair.map((id, side) => this.goOn(id, "AB"[side], id === shown)));
    else this.voteBar.replaceChildren(make("span", "", "Which is better?"), ...CHOICES.map(([choice, text]) => button(text, () => this.actions.vote(pair, choice))));
    if (focused) (this.voteBar.querySelector("[aria-pressed=true]") ?? this.voteBar.querySelector("button"))?.focus();
  }

  goOn(id, name, chosen) {
    const control = button(`Go on with ${name}`, () => this.actions.choose(id));
    control.setAttribute("aria-pressed", String(chosen));
    return control;
  }

  update(conversation, id) {
    // an answer has grown; drawn once in a frame, and only if it is what is shown
    if (this.frames.has(id) || conversation !== this.app.conversation) return;
    this.frames.add(id);
    requestAnimationFrame(() => {
      this.frames.delete(id);
      if (conversation !== this.app.conversation || !this.turns.has(id)) return;
      this.turns.get(id).draw();
      this.followEnd();
    });
  }

  followEnd(force = false) {
    if (force) this.atEnd = true;
    if (this.atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    byId("to-end").hidden = this.atEnd;
  }

  focusVersions(id) {
    // after a switch the buttons are others
    const turn = this.turns.get(id);
    if (!turn) return;
    const control = turn.after.disabled ? turn.before : turn.after;
    control.focus();
    say(`Version ${turn.ids.indexOf(id) + 1} of ${turn.ids.length}`);
  }
}
