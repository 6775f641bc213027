// The settings of this browser: sampling, system message, and what two answers are compared.

import { byId, closeOutside, make } from "./elements.mjs";
import { NUMBERS } from "./tree.mjs";

const FIELDS = {
  temperature: ["Temperature", { min: 0, max: 2, step: "any" }],
  top_p: ["Top p", { min: 0, max: 1, step: "any" }],
  top_k: ["Top k", { min: 1, step: 1 }],
  min_p: ["Min p", { min: 0, max: 1, step: "any" }],
  repetition_penalty: ["Repetition penalty", { min: 0, step: "any" }],
  max_tokens: ["Max tokens", { min: 1, step: 1 }],
  seed: ["Seed", { step: 1, min: -(2 ** 53) + 1, max: 2 ** 53 - 1 }],
};
const DEFAULT = "the server's";

class SamplingFields {
  // the fields of one sampling, in a fieldset
  constructor(fieldset, changed) {
    const grid = make("div", "grid");
    this.inputs = new Map(NUMBERS.map((name) => {
      const [text, limits] = FIELDS[name], label = make("label", "", text);
      const whole = limits.step === 1;
      const attributes = { type: "number", placeholder: DEFAULT, inputmode: whole ? "numeric" : "decimal", ...limits };
      const input = make("input", "", "", attributes);
      input.addEventListener("input", changed);
      label.append(input);
      grid.append(label);
      return [name, input];
    }));
    fieldset.append(grid);
  }

  get values() {
    const filled = [...this.inputs].filter(([, input]) => input.value !== "" && input.validity.valid);
    return Object.fromEntries(filled.map(([name, input]) => [name, Number(input.value)]));
  }

  set values(given) {
    for (const [name, input] of this.inputs) input.value = Number.isFinite(given?.[name]) ? String(given[name]) : "";
  }

  get wrong() {
    return [...this.inputs.values()].find((input) => !input.validity.valid) ?? null;
  }
}

export class Settings {
  // app: store, and changed(), which is called after each change
  constructor(app) {
    this.app = app;
    this.models = [];
    const changed = () => { this.keep(); app.settingsChanged(); };
    this.sampling = new SamplingFields(byId("sampling"), changed);
    this.sides = [0, 1].map((side) => {
      const fieldset = byId(`side-${side}`), label = make("label", "", "Model"), select = make("select");
      select.addEventListener("change", changed);
      label.append(select);
      fieldset.append(label);
      return { select, label, fields: new SamplingFields(fieldset, changed) };
    });
    for (const name of ["logprobs", "compare-on", "blind", "choice"]) byId(name).addEventListener("change", changed);
    byId("system").addEventListener("input", () => {
      this.defaultSystem = byId("system").value;  // what was written last, wherever, is what a new conversation begins with
      this.keep();
      app.systemChanged(this.defaultSystem);
    });
    for (const name of ["settings", "compare"]) {
      byId(`open-${name}`).addEventListener("click", () => byId(name).showModal());
      closeOutside(byId(name));
    }
    this.load();
  }

  load() {
    const stored = this.app.store.settings();
    // settings of earlier versions have texts, and sampling beside the system's message
    const numbers = (given) => Object.fromEntries(NUMBERS.map((name) => [name, parseFloat(given?.[name])]));
    this.sampling.values = numbers(stored.sampling ?? stored);
    this.defaultSystem = byId("system").value = typeof stored.system === "string" ? stored.system : "";
    byId("logprobs").checked = stored.logprobs === true;
    byId("compare-on").checked = stored.compare === true;
    byId("blind").checked = stored.blind !== false;
    this.wanted = [stored.model, ...[0, 1].map((side) => stored.sides?.[side]?.model)];
    this.sides.forEach(({ fields }, side) => { fields.values = numbers(stored.sides?.[side]?.sampling); });
  }

  clear() {
    this.app.store.removeSettings();
    this.load();
    this.offer(this.models);
  }

  keep() {
    const sides = this.sides.map(({ select, fields }) => ({ model: select.value, sampling: fields.values }));
    this.app.store.saveSettings({
      system: this.defaultSystem, sampling: this.sampling.values, logprobs: byId("logprobs").checked,
      compare: byId("compare-on").checked, blind: byId("blind").checked, model: byId("choice").value, sides,
    });
  }

  offer(models) {
    // the models of the server; what was chosen before stays, if it is still there
    this.models = models;
    const selects = [byId("choice"), ...this.sides.map(({ select }) => select)];
    selects.forEach((select, place) => {
      const before = select.value || this.wanted[place];
      select.replaceChildren(...models.map(({ id }) => {
        const option = make("option", "", id);
        option.value = id;
        return option;
      }));
      const second = place === 2 && models.length > 1 ? 1 : 0;
      select.value = models.some(({ id }) => id === before) ? before : models[second]?.id ?? "";
    });
    for (const { label } of this.sides) label.hidden = models.length < 2;
    byId("choice").hidden = models.length < 2;
    byId("model").classList.toggle("hidden-label", models.length > 1);
  }

  get model() {
    return this.modelCalled(byId("choice").value);
  }

  modelCalled(name) {
    return this.models.find(({ id }) => id === name) ?? null;
  }

  get logprobs() {
    return byId("logprobs").checked;
  }

  get comparing() {
    return byId("compare-on").checked;
  }

  pairOfSides(draw = Math.random()) {
    // the two sides, left and right; drawn where it is blind
    const sides = this.sides.map(({ select, fields }) => ({ model: this.modelCalled(select.value), sampling: fields.values }));
    if (byId("blind").checked && draw < 0.5) sides.reverse();
    return { sides, blind: byId("blind").checked };
  }

  valid() {
    // shows the field that is wrong, if one is
    const [place, wrong] = this.comparing
      ? ["compare", this.sides[0].fields.wrong ?? this.sides[1].fields.wrong] : ["settings", this.sampling.wrong];
    if (!wrong) return true;
    if (!byId(place).open) byId(place).showModal();
    wrong.reportValidity();
    return false;
  }
}
