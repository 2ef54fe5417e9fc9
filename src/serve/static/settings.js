// The sampling keys: one control for each, with the range and the default that the server names.

import { byId, el, icon } from "./dom.js";
import { load, save } from "./store.js";

const STORAGE = "agi2.sampling";
// Numbers with a slider: its ends and its step. The range that the server allows may be wider.
const SLIDERS = {
  temperature: [0, 2, 0.05],
  top_p: [0.01, 1, 0.01],
  min_p: [0, 1, 0.01],
  typical_p: [0.01, 1, 0.01],
  repetition_penalty: [0.5, 2, 0.05],
  presence_penalty: [-2, 2, 0.05],
  frequency_penalty: [-2, 2, 0.05],
};

const LARGEST_SHOWN = 1_000_000; // of the bounds; larger ones are no help

let values = load(STORAGE, {}); // what differs from the model's defaults
let keys = []; // of the model that is shown
const listeners = [];

/** Call a function after each change. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Show the keys of a model. */
export function showKeys(model) {
  keys = model?.sampling ?? [];
  draw();
}

/** Return the keys of a request that differ from the model's defaults. */
export function options() {
  return Object.fromEntries(
    keys.filter((key) => key.name in values).map((key) => [key.name, values[key.name]]),
  );
}

/** Set the keys: those that are missing get the model's defaults. */
export function setOptions(given) {
  values = { ...given };
  changed();
  draw();
}

/** Set one key; undefined for the model's default. */
export function setOption(name, value) {
  if (value === undefined) delete values[name];
  else values[name] = value;
  changed();
}

function changed() {
  save(STORAGE, values);
  listeners.forEach((listener) => listener());
}

function draw() {
  byId("sampling").replaceChildren(...keys.map(control));
  byId("reset-sampling").onclick = () => setOptions({});
}

function control(key) {
  const id = `key-${key.name}`;
  const reset = el("button", { type: "button", class: "reset", "aria-label": `Reset ${key.name}` }, icon("undo"));
  const field = fields[key.kind](key, id, (value) => {
    setOption(key.name, value);
    refresh();
  });
  const row = el(
    "div",
    { class: "key" },
    el("div", { class: "key-head" }, el("label", { for: id }, key.name.replaceAll("_", " ")), reset, field.main),
    field.slider ?? null,
    el("p", { class: "hint", id: `${id}-hint` }, describe(key)),
  );
  field.main.setAttribute("aria-describedby", `${id}-hint`);
  const refresh = () => {
    row.classList.toggle("changed", key.name in values);
    reset.hidden = !(key.name in values);
  };
  reset.addEventListener("click", () => {
    setOption(key.name, undefined);
    row.replaceWith(control(key));
    byId(id).focus();
  });
  refresh();
  return row;
}

function describe(key) {
  const parts = [key.description];
  const low = key.above ?? key.minimum;
  const isBounded = key.maximum !== null && key.maximum <= LARGEST_SHOWN;
  if (low !== null) {
    const from = key.above === null ? `From ${low}` : `Above ${key.above}`;
    parts.push(isBounded ? `${from} to ${key.maximum}.` : `${from}.`);
  }
  parts.push(`Default: ${shown(key.default)}.`);
  return parts.join(" ");
}

function shown(value) {
  if (value === null || value === "" || (Array.isArray(value) && !value.length)) return "none";
  if (typeof value === "boolean") return value ? "on" : "off";
  if (Array.isArray(value)) return value.map((each) => JSON.stringify(each)).join(", ");
  return typeof value === "object" ? Object.keys(value).length || "none" : value.toString();
}

const current = (key) => (key.name in values ? values[key.name] : key.default);

const fields = {
  number: numberField,
  integer: numberField,
  boolean(key, id, set) {
    const main = el("input", { type: "checkbox", id, checked: current(key) === true });
    main.addEventListener("change", () => set(main.checked));
    return { main };
  },
  /** Stop strings, one in each line; a backslash and n for a line feed. */
  texts(key, id, set) {
    const lines = (current(key) ?? []).map((each) => each.replaceAll("\\", "\\\\").replaceAll("\n", "\\n"));
    const main = el("textarea", { id, rows: 2, value: lines.join("\n"), spellcheck: false });
    main.addEventListener("input", () => {
      const found = main.value.split("\n").filter((line) => line !== "");
      const texts = found.map((line) => line.replace(/\\(\\|n)/g, (_, c) => (c === "n" ? "\n" : c)));
      set(texts.length || key.default?.length ? texts : undefined);
    });
    return { main };
  },
  /** Numbers by token id, one in each line: `262: -5`. */
  biases(key, id, set) {
    const lines = Object.entries(current(key) ?? {}).map(([token, bias]) => `${token}: ${bias}`);
    const main = el("textarea", { id, rows: 2, value: lines.join("\n"), spellcheck: false });
    main.addEventListener("input", () => {
      const entries = main.value.split("\n").map((line) => /^\s*(\d+)\s*:\s*(-?[\d.]+)\s*$/.exec(line));
      const isValid = entries.every((entry, i) => entry || !main.value.split("\n")[i].trim());
      main.setCustomValidity(isValid ? "" : "One token id and its bias in each line, such as 262: -5");
      main.classList.toggle("invalid", !isValid);
      main.setAttribute("aria-invalid", String(!isValid));
      const found = entries.filter(Boolean).map((entry) => [entry[1], Number(entry[2])]);
      if (isValid) set(found.length ? Object.fromEntries(found) : undefined);
    });
    return { main };
  },
};

function numberField(key, id, set) {
  const step = key.kind === "integer" ? 1 : "any";
  const low = key.minimum ?? key.above ?? undefined;
  const high = key.maximum === null ? undefined : Math.min(key.maximum, Number.MAX_SAFE_INTEGER);
  const main = el("input", {
    type: "number",
    id,
    step,
    min: low,
    max: high,
    value: current(key) ?? "",
    placeholder: key.default === null ? "none" : "",
    inputMode: key.kind === "integer" ? "numeric" : "decimal",
  });
  const slider = SLIDERS[key.name] ? sliderOf(key) : null;
  const apply = (text) => {
    const value = text === "" ? undefined : Number(text);
    const isAbove = key.above === null || value === undefined || value > key.above;
    const isValid = main.validity.valid && isAbove;
    main.classList.toggle("invalid", !isValid);
    main.setAttribute("aria-invalid", String(!isValid));
    if (isValid) set(value);
  };
  main.addEventListener("input", () => {
    if (slider && main.value !== "") slider.value = main.value;
    apply(main.value);
  });
  slider?.addEventListener("input", () => {
    main.value = slider.value;
    apply(main.value);
  });
  return { main, slider };
}

function sliderOf(key) {
  const [low, high, step] = SLIDERS[key.name];
  const neutral = key.maximum === 1 && key.name !== "min_p" ? 1 : 0;
  return el("input", {
    type: "range",
    min: low,
    max: high,
    step,
    value: current(key) ?? neutral,
    "aria-label": key.name.replaceAll("_", " "),
  });
}
