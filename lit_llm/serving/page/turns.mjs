// One turn of a conversation on the page: its words, its notes, and what can be done with it.

import { button, copyText, make, show } from "./elements.mjs";
import { fencesOf } from "./markdown.mjs";
import { blocksOfAnswer } from "./parts.mjs";
import { TokenView } from "./tokenview.mjs";
import { NUMBERS } from "./tree.mjs";

const SPEAKERS = { user: "You", assistant: "Model", system: "System", tool: "Tool" };

export function describeSampling(sampling) {
  return NUMBERS.filter((name) => sampling?.[name] !== undefined).map((name) => `${name.replaceAll("_", " ")} ${sampling[name]}`);
}

export class Turn {
  // actions: edit(id, text), again(id), select(id); shown: how it is to look, see refresh
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.tokenView = null;
    this.element = make("article", `turn ${node.role}`);
    this.name = make("h2", "hidden-label");
    this.body = make("div", "body");
    this.notes = make("p", "note soft");
    this.bar = make("div", "bar-of-turn");
    this.copy = button("Copy", () => copyText(() => this.node.content, this.copy));
    this.edit = button("Edit", () => this.beginEdit());
    this.again = button("Regenerate", () => actions.again(this.node.id));
    this.showTokens = button("Tokens", () => this.toggleTokens());
    this.showTokens.setAttribute("aria-pressed", "false");
    this.before = button("‹", () => this.step(-1), "Version before");
    this.after = button("›", () => this.step(1), "Version after");
    this.versions = make("span", "versions", "", { role: "group", "aria-label": "Versions of this turn" });
    this.count = make("span", "soft");
    this.versions.append(this.before, this.count, this.after);
    this.bar.append(this.versions, this.copy, this.edit, this.again, this.showTokens);
    this.element.append(this.name, this.body, this.notes, this.bar);
    this.ids = [node.id];
  }

  refresh({ ids = [this.node.id], label = SPEAKERS[this.node.role], chats = true, busy = false, hidden = false, inPair = false }) {
    // ids: of all versions; busy: an answer of the conversation is being written; hidden: who wrote it is a secret yet
    this.ids = ids;
    this.chats = chats;
    this.hidden = hidden;
    this.inPair = inPair;
    this.name.textContent = label;
    this.name.className = inPair ? "side-name" : "hidden-label";
    if (!inPair) this.element.classList.remove("preferred");
    const place = ids.indexOf(this.node.id);
    this.versions.hidden = inPair || ids.length < 2;
    this.count.textContent = `${place + 1} of ${ids.length}`;
    this.before.disabled = busy || place === 0;
    this.after.disabled = busy || place === ids.length - 1;
    const writes = this.node.role === "assistant";
    this.edit.hidden = inPair;
    this.again.hidden = inPair || !writes;
    this.edit.disabled = this.again.disabled = busy;
    this.draw();
  }

  draw() {
    // what changes while the answer is being written
    const { role, content, fields, busy, tokens } = this.node;
    this.element.classList.toggle("busy", Boolean(busy));
    this.bar.hidden = Boolean(busy) || Boolean(this.form);
    this.showTokens.hidden = !tokens?.length;
    if (!this.form) {
      if (this.tokenView) this.tokenView.show(tokens ?? []);
      else show(this.body, this.blocks(role, content, fields));
    }
    this.notes.textContent = busy ? "" : this.notesOf().join(" · ");
  }

  blocks(role, content, fields) {
    if (!this.chats) return content ? [[["p", [content]], content]] : [];
    if (role === "tool") return [[["figure", [content], "Result of a tool"], content]];
    return role === "user" ? fencesOf(content) : blocksOfAnswer(content, fields);
  }

  notesOf() {
    const { role, note, model, sampling, edited } = this.node;
    if (role !== "assistant") return [];
    const about = this.hidden ? [] : [...(this.inPair ? [model, ...describeSampling(sampling)] : [])];
    return [...about, edited ? "edited" : "", this.hidden ? "" : note].filter(Boolean);
  }

  step(by) {
    this.actions.select(this.ids[this.ids.indexOf(this.node.id) + by]);
  }

  toggleTokens() {
    this.tokenView = this.tokenView ? null : new TokenView();
    this.showTokens.setAttribute("aria-pressed", String(Boolean(this.tokenView)));
    this.body.replaceChildren(...(this.tokenView ? [this.tokenView.element] : []));
    this.draw();
  }

  beginEdit() {
    if (this.form) return;
    const asks = this.node.role === "user", form = make("form", "edit");
    const area = make("textarea", "", "", { "aria-label": asks ? "Your message" : "The answer's text", dir: "auto", rows: "4" });
    area.value = this.node.content;
    const save = make("button", "main", asks && this.chats ? "Send as a new version" : "Save as a new version");
    const row = make("div", "row");
    row.append(save, button("Cancel", () => this.endEdit()));
    form.append(area, row);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = area.value;
      if (!text.trim()) return;
      this.endEdit();
      if (text !== this.node.content) this.actions.edit(this.node.id, text);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.endEdit();
      } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.form = form;
    this.bar.hidden = this.body.hidden = true;
    this.body.after(form);
    area.style.height = `${Math.min(area.scrollHeight + 4, innerHeight / 2)}px`;
    area.focus();
  }

  endEdit() {
    this.form?.remove();
    this.form = null;
    this.body.hidden = false;
    this.draw();
    this.edit.focus();
  }
}
