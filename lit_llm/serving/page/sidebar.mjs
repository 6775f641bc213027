// The list of conversations; beside the page where there is room, over it on a phone.

import { button, byId, confirmed, make, say } from "./elements.mjs";

const NARROW = "(max-width: 56rem)";
const MOST_SHOWN = 200;

export class Sidebar {
  // app: store, conversation, open(conversation), removed(id), startNew()
  constructor(app) {
    this.app = app;
    this.narrow = matchMedia(NARROW);
    byId("open-sidebar").addEventListener("click", () => this.toggle(true));
    byId("close-sidebar").addEventListener("click", () => this.toggle(false));
    byId("find").addEventListener("input", () => this.draw());
    byId("new").addEventListener("click", () => {
      this.toggle(false);
      app.startNew();
    });
    byId("sidebar").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOpen) {
        event.stopPropagation();
        this.toggle(false);
      }
    });
    this.narrow.addEventListener("change", () => this.toggle(false, false));
  }

  get isOpen() {
    return document.body.classList.contains("sidebar-open");
  }

  toggle(open, focus = true) {
    const was = this.isOpen;
    document.body.classList.toggle("sidebar-open", open && this.narrow.matches);
    byId("page").inert = this.isOpen;
    byId("open-sidebar").setAttribute("aria-expanded", String(this.isOpen));
    if (focus && this.isOpen) byId("new").focus();
    else if (focus && was) byId("open-sidebar").focus();
  }

  draw() {
    const words = byId("find").value.trim().toLowerCase();
    const all = this.app.store.listed();
    const found = words ? all.filter(({ title }) => title.toLowerCase().includes(words)) : all;
    byId("find").hidden = all.length < 8;
    const lines = found.slice(0, MOST_SHOWN).map((conversation) => this.line(conversation));
    if (found.length > MOST_SHOWN) lines.push(make("li", "soft", `and ${found.length - MOST_SHOWN} older ones; find them by a word`));
    if (!found.length) lines.push(make("li", "soft", words ? "None is called that." : "Conversations are kept here, in this browser."));
    const focused = byId("chats").contains(document.activeElement) && document.activeElement;
    const [id, kind] = focused ? [focused.parentElement.dataset.id, focused.className] : [];
    byId("chats").replaceChildren(...lines);
    if (id) lines.find((line) => line.dataset.id === id)?.querySelector(`.${kind}`)?.focus();
  }

  line(conversation) {
    const line = make("li", "", "", { "data-id": conversation.id }), title = conversation.title || "Without a title";
    const open = button("", () => {
      this.toggle(false, false);
      this.app.open(conversation);
    });
    open.className = "open";
    open.append(make("bdi", "", title));
    if (conversation.id === this.app.conversation.id) open.setAttribute("aria-current", "true");
    const erase = button("×", () => this.erase(conversation), `Delete ${title}`);
    erase.className = "erase";
    line.append(open, erase);
    return line;
  }

  async erase(conversation) {
    const place = this.app.store.listed().indexOf(conversation);
    if (!await confirmed(`Delete the conversation “${conversation.title || "Without a title"}” from this browser?`, "Delete")) return;
    this.app.removed(conversation.id);
    say("The conversation is deleted.");
    const lines = byId("chats").querySelectorAll(".open");
    (lines[Math.min(place, lines.length - 1)] ?? byId("new")).focus();
  }
}
