// Elements of the page. Whatever a model, a server or a file says becomes text nodes, never HTML.

export const byId = (id) => document.getElementById(id);

export function make(tag, className = "", text = "", attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function button(text, action, label = "") {
  const element = make("button", "", text, { type: "button", ...(label && { "aria-label": label }) });
  element.addEventListener("click", action);
  return element;
}

const shownSource = new WeakMap();  // element of a block -> the text that it shows
const BLOCKS = new Set(["figure", "call", "thought"]);  // keep their elements while their text grows

function newFigure(kind, text, caption) {
  const figure = make("figure", kind === "call" ? "call" : ""), head = make("figcaption");
  const copy = button("Copy", () => copyText(() => figure.querySelector("code").textContent, copy));
  head.append(make("span", "", caption), copy);
  const pre = make("pre", "", "", { tabindex: "0" });
  pre.append(make("code", "", text));
  figure.append(head, pre);
  return figure;
}

function newThought(text) {
  const element = make("details", "thought");
  element.append(make("summary", "", "Thoughts"), make("p", "", text, { dir: "auto" }));
  return element;
}

const captionOf = (kind, about) => (kind === "call" ? `Tool call${about ? `: ${about}` : ""}` : about);

function build([tag, children, about], isBlock = false) {
  if (tag === "thought") return newThought(children[0]);
  if (tag === "figure" || tag === "call") return newFigure(tag, children[0], captionOf(tag, about));
  const element = make(tag, tag === "ol" ? "" : about);
  if (tag === "ol") element.start = about;
  for (const child of children) element.append(typeof child === "string" ? child : build(child));  // strings become text
  // A whole list or table has one direction, or its numbers would be elsewhere. Set at the end: the browser looks through
  // the element anew for each child that is added to it.
  if (isBlock) element.dir = "auto";
  return element;
}

export function show(body, blocks) {
  // only blocks that have changed are touched, so that a selection and a focused button stay while text comes in
  blocks.forEach(([tree, source], index) => {
    const element = body.children[index], kind = tree[0];
    const key = `${kind}:${source}`;
    if (element && shownSource.get(element) === key) return;
    let fresh = element;
    if (BLOCKS.has(kind) && shownSource.get(element)?.startsWith(`${kind}:`)) {
      if (kind === "thought") element.lastChild.textContent = tree[1][0];
      else {
        element.querySelector("span").textContent = captionOf(kind, tree[2]);
        element.querySelector("code").textContent = tree[1][0];
      }
    } else {
      fresh = build(tree, true);
      if (element) element.replaceWith(fresh);
      else body.append(fresh);
    }
    shownSource.set(fresh, key);
  });
  while (body.children.length > blocks.length) body.lastElementChild.remove();
}

export async function copyText(text, control) {
  try {
    await navigator.clipboard.writeText(text());
    control.textContent = "Copied";
  } catch {  // only secure pages have a clipboard
    const area = make("textarea", "hidden-label", text());
    document.body.append(area);
    area.select();
    control.textContent = document.execCommand("copy") ? "Copied" : "Not copied";
    area.remove();
    control.focus();
  }
  setTimeout(() => { control.textContent = "Copy"; }, 1500);
}

export function download(name, text) {
  const link = make("a"), url = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export function confirmed(question, action) {
  // whether the user agrees
  const dialog = byId("confirm");
  byId("confirm-question").textContent = question;
  byId("confirm-yes").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export function closeOutside(dialog) {
  // a click beside a dialog closes it, as Escape does
  dialog.addEventListener("pointerdown", (event) => {
    if (event.target !== dialog) return;
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    if (event.clientX < left || event.clientX > right || event.clientY < top || event.clientY > bottom) dialog.close();
  });
}

// ---- what is said aloud: whole sentences, and none while an answer is being written ----

let silence = 0;

export function say(text) {
  // by a screen reader; the same words are said again, since the region is empty in between
  clearTimeout(silence);
  byId("status").textContent = "";
  silence = setTimeout(() => { byId("status").textContent = text; }, 100);
}

export function showError(message) {
  byId("error").textContent = message;
  byId("error").hidden = !message;
}
