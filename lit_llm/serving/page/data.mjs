// Files in and out, and what this browser keeps: all of it can be had, and all of it can be erased.

import { byId, closeOutside, confirmed, download, make } from "./elements.mjs";
import { conversationsFrom, lineOf, MOST_BYTES, rowsOf } from "./rows.mjs";

const today = () => new Date().toISOString().slice(0, 10);
const counted = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export class DataDialog {
  // app: store, conversation, settings, open(conversation), startNew(), removedAll(), votesChanged(), listChanged()
  constructor(app) {
    this.app = app;
    for (const name of ["open-data", "notice-data"]) byId(name).addEventListener("click", () => this.open());
    closeOutside(byId("data"));
    byId("save-one").addEventListener("click", () => this.write([app.conversation], "conversation"));
    byId("save-all").addEventListener("click", () => this.write(app.store.listed(), "conversations"));
    byId("save-votes").addEventListener("click", () => this.writeVotes());
    byId("read-file").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", () => this.read(byId("file").files[0]));
    byId("erase-votes").addEventListener("click", () => this.eraseVotes());
    byId("erase-chats").addEventListener("click", () => this.eraseChats());
    byId("erase-all").addEventListener("click", () => this.eraseAll());
  }

  open() {
    this.note([]);
    this.draw();
    byId("data").showModal();
  }

  draw() {
    const { store, conversation } = this.app, { votes } = store, rows = votes.filter(({ row }) => row).length;
    const where = { kept: "in this browser alone", full: "in this browser, as far as there was room", forbidden: "until this page is closed" };
    const size = store.state === "forbidden" ? "" : ` (${counted(Math.ceil(store.size() / 1024), "kilobyte")})`;
    const broken = store.broken ? ` ${counted(store.broken, "conversation")} cannot be read, and can only be deleted.` : "";
    const all = `${counted(store.conversations.size, "conversation")} and ${counted(votes.length, "vote")}`;
    byId("kept").textContent = `${all} are kept ${where[store.state]}${size}.${broken}`;
    byId("save-one").disabled = !conversation.nodes.size;
    byId("save-all").disabled = !store.conversations.size;
    byId("save-votes").disabled = !rows;
    byId("save-votes").textContent = votes.length ? `Download votes (${counted(rows, "row")})` : "Download votes";
    byId("erase-votes").disabled = !votes.length;
    byId("erase-chats").disabled = !store.conversations.size && !store.broken;
  }

  note(lines) {
    byId("notes").replaceChildren(...lines.map((line) => make("li", "", line)));
  }

  write(conversations, name) {
    const { text, rows, leftOut } = rowsOf(conversations.filter((each) => each.nodes.size), byId("every-branch").checked);
    if (rows) download(`${name}-${today()}.jsonl`, text);
    const left = leftOut ? [`${counted(leftOut, "conversation")} left out: without an answer, or with an empty turn`] : [];
    this.note([rows ? `${counted(rows, "row")} written` : "no file was written", ...left]);
  }

  writeVotes() {
    const rows = this.app.store.votes.flatMap(({ row }) => (row ? [lineOf(row)] : []));
    const without = this.app.store.votes.length - rows.length;
    download(`preferences-${today()}.jsonl`, rows.map((row) => `${row}\n`).join(""));
    const ties = without ? [`${counted(without, "vote")} without a better answer ${without === 1 ? "is" : "are"} no row`] : [];
    this.note([`${counted(rows.length, "row")} written`, ...ties]);
  }

  async read(file) {
    byId("file").value = "";
    if (!file) return;
    if (file.size > MOST_BYTES) {
      this.note([`the file has ${file.size.toLocaleString("en")} bytes; at most ${MOST_BYTES.toLocaleString("en")} are read: split it`]);
      return;
    }
    let found;
    try {
      found = conversationsFrom(await file.text());
    } catch (error) {
      this.note([`the file cannot be read (${error.message})`]);
      return;
    }
    const { conversations, notes } = found, now = Date.now();
    // the first row of the file stands at the top of the list
    conversations.forEach((conversation, place) => this.app.store.save(conversation, now + conversations.length - place));
    if (conversations.length) this.app.open(conversations[0]);
    this.app.listChanged();
    this.draw();
    this.note([`${counted(conversations.length, "conversation")} read`, ...notes]);
  }

  async eraseVotes() {
    if (!await confirmed(`Delete all ${counted(this.app.store.votes.length, "vote")} from this browser?`, "Delete votes")) return;
    this.app.store.removeVotes();
    this.app.votesChanged();
    this.done("The votes are deleted.");
  }

  async eraseChats() {
    const { conversations, broken } = this.app.store;
    const question = `Delete all ${counted(conversations.size + broken, "conversation")} from this browser? Votes stay.`;
    if (!await confirmed(question, "Delete conversations")) return;
    this.app.removedAll();
    this.done("The conversations are deleted.");
  }

  async eraseAll() {
    if (!await confirmed("Delete conversations, votes, settings and the key from this browser?", "Delete everything")) return;
    this.app.removedAll();
    this.app.store.removeVotes();
    this.app.votesChanged();
    this.app.settings.clear();
    this.app.forgetKey();
    this.done("Everything is deleted.");
  }

  done(text) {
    this.draw();
    this.note([text]);
  }
}
