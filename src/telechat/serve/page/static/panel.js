// The settings tab: model, system prompt, sampling. Reports changes; keeps nothing itself.

import { h, byId } from "./dom.js";
import { samplingFields, readField } from "./sampling.js";
import { t } from "./i18n.js";

export class SettingsPanel {
  constructor({ onSampling, onSystemPrompt, onModel }) {
    this.systemPrompt = byId("system-prompt");
    this.model = byId("model");
    this.onSampling = onSampling;
    this.sampling = {};
    this.systemPrompt.addEventListener("input", () => onSystemPrompt(this.systemPrompt.value));
    this.model.addEventListener("change", () => onModel(this.model.value));
  }

  showSystemPrompt(text) {
    if (this.systemPrompt.value !== text) this.systemPrompt.value = text;
  }

  showModels(models, chosen) {
    byId("model-field").hidden = models.length < 2;
    this.model.replaceChildren(...models.map(({ id }) => h("option", { value: id, selected: id === chosen }, id)));
  }

  showSampling(sampling) {
    this.sampling = { ...sampling };
    byId("sampling").replaceChildren(...samplingFields.map((field) => this.#row(field)));
  }

  #row(field) {
    const id = `sampling-${field.name}`;
    const input = h("input", { id, type: "number", inputmode: "decimal", min: field.min, max: field.max, step: field.step, placeholder: t("modelDefault"), "aria-describedby": `${id}-note` });
    input.value = this.sampling[field.name] ?? "";
    const noteText = t(`${field.name}Note`);
    const note = h("small", { id: `${id}-note`, class: "faint" }, noteText);
    input.addEventListener("input", () => {
      // A number field that holds something else reports an empty value; only `badInput` tells.
      const read = input.validity.badInput ? { isWrong: true } : readField(field, input.value);
      input.setAttribute("aria-invalid", String(Boolean(read.isWrong)));
      const kind = t(field.isInteger ? "kindInteger" : "kindNumber");
      note.textContent = read.isWrong ? t("outOfRange", { min: field.min, max: field.max, kind }) : noteText;
      note.classList.toggle("bad", Boolean(read.isWrong));
      if (read.isWrong) return;
      if (read.value === undefined) delete this.sampling[field.name];
      else this.sampling[field.name] = read.value;
      this.onSampling({ ...this.sampling });
    });
    return h("div", { class: "field row" }, h("label", { for: id }, t(field.name)), input, note);
  }
}
