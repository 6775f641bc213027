// The tokens of an answer, each with its probability and what else might have stood there: under the pointer, or by
// arrow keys. The whole list is one stop of the tab key.

import { make } from "./elements.mjs";
import { alone, inFlow, level, percent } from "./tokens.mjs";

const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -Infinity, End: Infinity };

let tip = null, hiding = 0, pointed = null;

function tipOf() {
  if (tip) return tip;
  tip = make("div", "", "", { id: "tip", role: "tooltip" });
  tip.hidden = true;
  tip.addEventListener("pointerenter", () => clearTimeout(hiding));
  tip.addEventListener("pointerleave", hideTip);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !tip.hidden) {
      event.stopPropagation();
      hideTip();
    }
  }, { capture: true });
  document.addEventListener("scroll", () => {
    if (tip.hidden) return;
    if (document.activeElement === pointed[0]) showTip(...pointed);  // arrow keys may have scrolled
    else hideTip();
  }, { capture: true, passive: true });
  document.body.append(tip);
  return tip;
}

export function hideTip() {
  clearTimeout(hiding);
  if (tip) tip.hidden = true;
}

function showTip(element, token) {
  clearTimeout(hiding);
  pointed = [element, token];
  const box = tipOf(), list = make("ol");
  const others = token.others.some((other) => other.text === token.text) ? token.others : [token, ...token.others];
  for (const other of others) {
    const line = make("li", other.text === token.text ? "chosen" : ""), bar = make("span", "bar");
    bar.style.width = `${Math.round(100 * other.share)}%`;
    const name = make("bdi", "", alone(other.text));
    line.append(bar, name, make("span", "share", percent(other.share)));
    if (other.text === token.text) line.append(make("span", "hidden-label", " (written)"));
    list.append(line);
  }
  box.replaceChildren(list);
  box.hidden = false;
  const at = element.getClientRects()[0] ?? element.getBoundingClientRect(), size = box.getBoundingClientRect();
  const below = at.bottom + 4 + size.height <= innerHeight;
  box.style.left = `${Math.max(4, Math.min(at.left, innerWidth - size.width - 4))}px`;
  box.style.top = `${below ? at.bottom + 4 : Math.max(4, at.top - 4 - size.height)}px`;
  element.setAttribute("aria-describedby", "tip");
}

export class TokenView {
  constructor() {
    this.tokens = [];
    this.at = 0;
    this.element = make("div", "tokens", "", { role: "listbox", "aria-label": "Tokens, with their probabilities", dir: "auto" });
    const numberOf = (event) => [...this.element.children].indexOf(event.target.closest("[role=option]"));
    this.element.addEventListener("focusin", (event) => this.point(numberOf(event)));
    this.element.addEventListener("focusout", hideTip);
    this.element.addEventListener("click", (event) => this.go(numberOf(event)));
    this.element.addEventListener("pointerover", (event) => {
      const number = numberOf(event);
      if (number >= 0 && event.pointerType === "mouse") showTip(this.element.children[number], this.tokens[number]);
    });
    this.element.addEventListener("pointerout", () => {
      clearTimeout(hiding);
      hiding = setTimeout(hideTip, 200);
    });
    this.element.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const rtl = getComputedStyle(this.element).direction === "rtl" && Math.abs(step) === 1;
      this.go(Math.max(0, Math.min(this.tokens.length - 1, this.at + (rtl ? -step : step))));
    });
  }

  show(tokens) {
    // tokens that came since the last time are added
    const fresh = tokens.slice(this.tokens.length).map((token) => make("span", `token level-${level(token.share)}`, inFlow(token.text), {
      role: "option", "aria-selected": "false", "aria-label": `${alone(token.text)}, ${percent(token.share)}`, tabindex: "-1",
    }));
    const first = this.tokens.length === 0 && fresh.length;
    this.element.append(...fresh);
    this.tokens = tokens.slice();
    if (first) this.element.firstChild.tabIndex = 0;
  }

  point(number) {
    // the token under the keys
    const element = this.element.children[number];
    if (!element) return;
    const before = this.element.children[this.at];
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    before.removeAttribute("aria-describedby");
    this.at = number;
    element.tabIndex = 0;
    element.setAttribute("aria-selected", "true");
    showTip(element, this.tokens[number]);
  }

  go(number) {
    if (number < 0) return;
    const element = this.element.children[number];
    element?.scrollIntoView({ block: "nearest" });  // before the tip, which scrolling hides
    element?.focus({ preventScroll: true });
    this.point(number);
  }
}
