// The page: puts its parts together, and does what is asked of it.

import { Writer } from "./answers.mjs";
import { Api, isChat } from "./api.mjs";
import { DataDialog } from "./data.mjs";
import { byId, say, showError } from "./elements.mjs";
import { preferenceOf } from "./rows.mjs";
import { Settings } from "./settings.mjs";
import { Sidebar } from "./sidebar.mjs";
import { Store } from "./store.mjs";
import { add, newConversation, nextId, pathOf, pathTo, removeLeaf, select, shownAfter, versionsOf } from "./tree.mjs";
import { describeSampling } from "./turns.mjs";
import { View } from "./view.mjs";

const KEY = "lit_llm.key";
const SAID_WHOLE = 400;  // letters of an answer that a screen reader is given at once

class App {
  constructor() {
    this.store = new Store(() => localStorage);
    this.settings = new Settings(this);
    this.conversation = newConversation(this.settings.defaultSystem);
    this.api = new Api(document.baseURI, (asked) => this.keyAsked(asked));
    this.api.key = this.storedKey();
    this.view = new View(this, {
      edit: (id, text) => this.edit(id, text), again: (id) => this.again(id),
      select: (id) => this.select(id), choose: (id) => this.choose(id), vote: (pair, choice) => this.vote(pair, choice),
    });
    this.writer = new Writer(this);
    this.sidebar = new Sidebar(this);
    this.data = new DataDialog(this);
    this.seen = "";  // the last notice that was closed
    this.listen();
    this.sidebar.draw();
    this.view.open();
    this.refresh();
  }

  // ---- what the page looks like ----

  isBusy() {
    return this.writer.isBusy(this.conversation);
  }

  chats() {
    return !this.settings.model || isChat(this.settings.model);
  }

  refresh() {
    const busy = this.isBusy(), chats = this.chats(), empty = !this.conversation.nodes.size;
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    byId("send").disabled = !byId("message").value.trim() && (chats || empty);
    byId("send").textContent = chats ? "Send" : "Continue";
    byId("message").placeholder = chats ? "Message" : "Text to continue";
    byId("system-label").hidden = !chats;
    byId("open-compare").setAttribute("aria-pressed", String(this.settings.comparing));
    const begin = chats ? "Write a message to begin."
      : "This model has no chat template: it continues your text. Write how it begins; send nothing to let it go on.";
    byId("hint").textContent = this.settings.model && (empty || !chats) ? begin : "";
    this.describeModel();
    this.notice();
    const box = byId("message");
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + 2}px`;
  }

  describeModel() {
    const { model } = this.settings;
    if (!model) return;
    const parts = [];
    if (Number.isInteger(model.context_length)) parts.push(`context ${model.context_length.toLocaleString("en")}`);
    if (model.quantize !== undefined) parts.push(model.quantize && model.quantize !== "none" ? String(model.quantize) : "not quantized");
    if (model.loaded === false) parts.push("loaded with the first message");
    if (!isChat(model)) parts.push("continues text");
    if (this.settings.comparing) parts.push("two answers to each message");
    byId("model").textContent = document.title = model.id;
    byId("about").textContent = parts.join(" · ");
  }

  notice() {
    const texts = {
      kept: "",
      full: "This browser has no more room: what is new is lost when the page is closed. Download or delete conversations.",
      forbidden: "This browser lets the page keep nothing: conversations are lost when it is closed. Download what you need.",
    };
    const text = texts[this.store.state];
    byId("notice").hidden = !text || this.seen === text;
    if (byId("notice-text").textContent !== text) {
      byId("notice-text").textContent = text;
      if (text) say(text);
    }
  }

  changed(conversation) {
    // an answer began or ended, or a turn was added
    if (this.store.conversations.has(conversation.id)) this.store.save(conversation);
    if (conversation === this.conversation) this.view.render();
    this.sidebar.draw();
    this.refresh();
    if (conversation === this.conversation) this.view.followEnd();
  }

  settingsChanged() {
    this.view.render();
    this.refresh();
  }

  systemChanged(text) {
    this.conversation.system = text;
    if (this.conversation.nodes.size) this.store.save(this.conversation);
  }

  // ---- conversations ----

  open(conversation) {
    this.conversation = conversation;
    byId("system").value = conversation.system;
    showError("");
    this.view.open();
    this.sidebar.draw();
    this.refresh();
    byId(matchMedia("(pointer: coarse)").matches ? "scroller" : "message").focus();  // a phone would show its keys
  }

  startNew() {
    this.open(newConversation(this.settings.defaultSystem));
  }

  removed(id) {
    const conversation = this.store.conversations.get(id);
    if (conversation) this.writer.stop(conversation);
    this.store.remove(id);
    if (this.conversation.id === id) this.startNew();
    this.sidebar.draw();
    this.refresh();
  }

  removedAll() {
    for (const conversation of this.store.conversations.values()) this.writer.stop(conversation);
    this.store.removeAll();
    this.startNew();
  }

  listChanged() {
    this.sidebar.draw();
    this.refresh();
  }

  votesChanged() {
    this.view.render();
    this.refresh();
  }

  choose(id) {
    select(this.conversation, id);
    this.store.save(this.conversation, this.conversation.changed);
    this.view.render();
    this.refresh();
  }

  select(id) {
    if (this.isBusy()) return;
    this.choose(id);
    this.view.focusVersions(id);
  }

  // ---- answers ----

  async ready() {
    // whether an answer can be asked for
    if (this.isBusy()) return false;
    showError("");
    if (!this.settings.model) await this.connect();
    return Boolean(this.settings.model) && this.settings.valid();
  }

  async answer(conversation, parent, { draw = 0, both = false } = {}) {
    // whether anything was written
    const one = { model: this.settings.model, sampling: this.settings.sampling.values, draw, logprobs: this.settings.logprobs };
    say(both ? "The models are writing." : "The model is writing.");
    this.view.atEnd = true;
    const writing = both ? this.writePair(conversation, parent) : [this.writer.write(conversation, parent, one)];
    this.view.followEnd(true);
    const results = await Promise.all(writing);
    const written = results.filter(({ id }) => id), error = results.map((result) => result.error).find(Boolean);
    if (both && written.length === 1) delete conversation.nodes.get(written[0].id).pair;
    if (conversation.nodes.has(written[0]?.id)) select(conversation, written[0].id);
    this.changed(conversation);
    if (this.settings.models.some(({ loaded }) => loaded === false)) this.listAgain();
    if (conversation === this.conversation) {
      showError(error ?? "");
      if (!error) this.sayEnd(conversation, written);
    }
    return written.length > 0;
  }

  writePair(conversation, parent) {
    const { sides, blind } = this.settings.pairOfSides(), pair = nextId(conversation), { logprobs } = this.settings;
    return sides.map(({ model, sampling }) => {
      return this.writer.write(conversation, parent, { model, sampling, logprobs, more: { sampling, pair, ...(blind && { blind }) } });
    });
  }

  sayEnd(conversation, written) {
    if (written.length === 2) say("Both answers are complete. Say which is better.");
    else if (written.length) {
      const { content, note } = conversation.nodes.get(written[0].id);
      say(content.length <= SAID_WHOLE ? `The answer: ${content}` : `The answer is complete. ${note}`);
    } else say("Stopped.");
  }

  async send() {
    const box = byId("message"), text = box.value;
    if (this.isBusy() || (!text.trim() && (this.chats() || !this.conversation.nodes.size))) return;
    if (!await this.ready()) return;
    const { conversation } = this, path = pathOf(conversation);
    let parent = path.at(-1) ?? 0;
    const user = text ? add(conversation, parent, "user", text) : 0;
    parent = user || parent;
    box.value = "";
    this.store.save(conversation);
    if (!await this.answer(conversation, parent, { both: this.settings.comparing })) {
      // the message goes back to where it can be sent, or changed first
      if (user && conversation.nodes.get(user)?.next === 0) removeLeaf(conversation, user);
      if (conversation === this.conversation) box.value ||= text;
      if (!conversation.nodes.size) this.store.remove(conversation.id);
      this.changed(conversation);
    }
    if (conversation === this.conversation) box.focus();
  }

  async again(id) {
    if (!await this.ready()) return;
    const { conversation } = this, { parent } = conversation.nodes.get(id);
    await this.answer(conversation, parent, { draw: versionsOf(conversation, id).length });
    this.view.turns.get(shownAfter(conversation, parent))?.again.focus();
  }

  async edit(id, text) {
    const { conversation } = this, { parent, role } = conversation.nodes.get(id);
    if (this.isBusy()) return;
    const asks = role === "user" && this.chats();
    if (asks && !await this.ready()) return;
    const fresh = add(conversation, parent, role, text, asks ? {} : { edited: true });
    if (!asks) {
      this.changed(conversation);
      this.store.save(conversation);
      this.view.turns.get(fresh)?.edit.focus();
    } else if (!await this.answer(conversation, fresh, { both: this.settings.comparing })) {
      if (conversation.nodes.get(fresh)?.next === 0) removeLeaf(conversation, fresh, id);
      this.changed(conversation);
      if (conversation === this.conversation) byId("message").value ||= text;
    }
    this.refresh();
  }

  // ---- votes ----

  voteOn(pair) {
    return this.store.voteOn(this.conversation.id, pair);
  }

  saysWhyNoVote(nodes) {
    if (nodes.some(({ content }) => !content.trim())) return "One answer is empty, so there is nothing to compare.";
    return nodes[0].content === nodes[1].content ? "Both answers are the same, so there is nothing to compare." : "";
  }

  vote(pair, choice) {
    const { conversation } = this, nodes = pair.map((id) => conversation.nodes.get(id));
    const [chosen, rejected] = choice === "right" ? [nodes[1], nodes[0]] : nodes;
    const path = pathTo(conversation, nodes[0].parent);
    const row = ["left", "right"].includes(choice) ? preferenceOf(conversation, path, chosen, rejected, this.chats()) : null;
    const by = ({ model, sampling }) => [model, ...describeSampling(sampling)].join(", ");
    const whole = row && { ...row, chosen_by: by(chosen), rejected_by: by(rejected) };
    this.store.setVote({ conversation: conversation.id, pair: nodes[0].pair, choice, time: Date.now(), row: whole });
    select(conversation, choice === "right" ? pair[1] : pair[0]);
    this.changed(conversation);
    if (choice) say("Your vote is kept. Go on with the better answer, or change your vote.");
  }

  // ---- the server and its key ----

  async connect() {
    try {
      const models = await this.api.models();
      this.settings.offer(models);
      showError("");
    } catch (error) {
      byId("model").textContent = "Not connected";
      showError(error.message);
    }
    this.view.render();
    this.refresh();
  }

  async listAgain() {
    // a model that has been loaded says more of itself
    try {
      this.settings.offer(await this.api.models());
      this.settingsChanged();
    } catch { /* what is known of the models stays */ }
  }

  keyAsked(asked) {
    if (byId("key-form").hidden !== asked) return;
    byId("key-form").hidden = !asked;
    if (asked) byId("key").focus();
  }

  storedKey() {
    try {
      return sessionStorage.getItem(KEY) ?? "";
    } catch {
      return "";
    }
  }

  useKey(key) {
    // until the window is closed
    this.api.key = key;
    try {
      if (key) sessionStorage.setItem(KEY, key);
      else sessionStorage.removeItem(KEY);
    } catch { /* it holds until the page is closed */ }
  }

  forgetKey() {
    this.useKey("");
  }

  // ---- the user ----

  listen() {
    byId("composer").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    byId("message").addEventListener("keydown", (event) => this.keyInMessage(event));
    byId("message").addEventListener("input", () => this.refresh());
    byId("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isBusy() && !document.querySelector("dialog[open]")) this.stop();
    });
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.useKey(byId("key").value.trim());
      byId("key").value = "";
      this.connect().then(() => { if (this.settings.model) byId("message").focus(); });
    });
    byId("notice-close").addEventListener("click", () => {
      this.seen = byId("notice-text").textContent;
      this.notice();
      byId("message").focus();
    });
    addEventListener("storage", (event) => this.changedElsewhere(event));
  }

  keyInMessage(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && !byId("message").value && !this.isBusy()) {
      // the last message, to be changed
      const id = pathOf(this.conversation).findLast((each) => this.conversation.nodes.get(each).role === "user");
      if (!id) return;
      event.preventDefault();
      this.view.turns.get(id)?.beginEdit();
    }
  }

  stop() {
    this.writer.stop(this.conversation);
    byId("message").focus();
  }

  changedElsewhere({ key, storageArea }) {
    if (storageArea !== this.store.storage || (key !== null && !key.startsWith("lit_llm."))) return;
    const known = this.store.conversations.has(this.conversation.id);
    const id = this.store.changedElsewhere(key);
    if ((key === null || id === this.conversation.id) && !this.isBusy()) {
      const there = this.store.conversations.get(this.conversation.id);
      if (there) this.open(there);
      else if (known) this.startNew();
    }
    this.sidebar.draw();
    this.votesChanged();
  }
}

const app = new App();
app.connect();
