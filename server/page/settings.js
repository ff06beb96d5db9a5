// The form beside the conversation. Fields are named as in the API; an empty one leaves the choice to the server.

import { load, save } from "./storage.js";

const PARSERS = {
  stop: (text) => text.split("\n").filter(Boolean),
  tools: (text) => json(text, Array.isArray, "a list of tools"),
  response_format: (text) => json(text, isObject, "a JSON schema"),
  other: (text) => json(text, isObject, "an object of fields"),
};

export class Settings {
  #form;

  /** `onchange` is called whenever a value has changed. */
  constructor(form, onchange) {
    this.#form = form;
    for (const [name, value] of Object.entries(load("settings") ?? {})) this.#set(name, value);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      this.#check();
      this.#keep();
      onchange();
    });
    this.#check();
  }

  /** The first field that holds what it must not; null if all is well. */
  get invalid() {
    return [...this.#form.elements].find((field) => field.willValidate && !field.validity.valid) ?? null;
  }

  /** All values as requests need them; null where nothing is given. */
  get values() {
    const values = {};
    for (const field of this.#fields()) {
      if (field.type === "checkbox") values[field.name] = field.checked;
      else if (!field.value.trim()) values[field.name] = null;
      else if (PARSERS[field.name]) values[field.name] = PARSERS[field.name](field.value);
      else values[field.name] = field.type === "number" ? Number(field.value) : field.value;
    }
    return values;
  }

  /** Sets one value, as its field shows it. */
  set(name, value) {
    this.#set(name, value);
    this.#form.dispatchEvent(new Event("input"));
  }

  /** Leaves everything to the server again. */
  reset() {
    this.#form.reset();
    this.#form.dispatchEvent(new Event("input"));
  }

  *#fields() {
    for (const field of this.#form.elements) if (field.name) yield field;
  }

  #set(name, value) {
    const field = this.#form.elements.namedItem(name);
    if (!field) return;
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
  }

  #keep() {
    const shown = [...this.#fields()].map((field) => [
      field.name,
      field.type === "checkbox" ? field.checked : field.value,
    ]);
    save("settings", Object.fromEntries(shown));
  }

  /** Says below each field what is wrong with it. */
  #check() {
    for (const field of this.#fields()) {
      field.setCustomValidity("");
      try {
        if (field.value.trim()) PARSERS[field.name]?.(field.value);
      } catch (error) {
        field.setCustomValidity(error.message);
      }
      const message = document.getElementById(field.getAttribute("aria-errormessage"));
      field.setAttribute("aria-invalid", !field.validity.valid);
      if (message) message.textContent = field.validationMessage;
    }
  }
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function json(text, fits, what) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}`);
  }
  if (!fits(value)) throw new Error(`This must be ${what}.`);
  return value;
}
