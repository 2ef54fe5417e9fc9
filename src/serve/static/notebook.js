// The notebook: one text, continued wherever the caret is.

import { ApiError, events, json } from "./api.js";
import { byId, download, el, icon, say, toast } from "./dom.js";
import { inspect } from "./inspect.js";
import { options, showKeys } from "./settings.js";
import { load, save } from "./store.js";
import { rounded, tint, TokenView } from "./tokens.js";

const STORAGE = "agi2.notebook";
const ALTERNATIVES = 6;

let models = [];
let text = "";
let runs = []; // what was generated: { start, text, tokens, seed, model }
let before = null; // what "Undo" restores
let controller = null;

const area = () => byId("notebook");

/** Show the notebook, once the models are known. */
export function setUpNotebook(found) {
  models = found;
  const stored = load(STORAGE, {});
  text = typeof stored.text === "string" ? stored.text : "";
  area().value = text;
  const select = byId("notebook-model");
  select.replaceChildren(...models.map((model) => el("option", { value: model.name }, model.name)));
  if (models.some((model) => model.name === stored.model)) select.value = stored.model;
  select.addEventListener("change", () => {
    keep();
    showKeys(model());
  });
  area().addEventListener("input", () => edited(area().value));
  area().addEventListener("keydown", onKey);
  byId("notebook-tokens").addEventListener("keydown", onKey);
  byId("continue").addEventListener("click", () => (controller ? controller.abort() : proceed(area().selectionEnd)));
  byId("undo").addEventListener("click", undo);
  byId("notebook-again").addEventListener("click", again);
  byId("notebook-repeat").addEventListener("click", () => again(true));
  byId("notebook-view").addEventListener("click", () => showTokens(byId("notebook-tokens").hidden));
  byId("notebook-save").addEventListener("click", () => download("notebook.txt", text, "text/plain"));
  tint.listeners.push(drawTokens);
  drawState();
}

/** Show the sampling keys of the notebook's model. */
export function showNotebook() {
  showKeys(model());
}

const model = () => models.find((each) => each.name === byId("notebook-model").value);

function keep() {
  if (!save(STORAGE, { text, model: byId("notebook-model").value })) {
    toast("The browser has no room for this text: save it to a file.");
  }
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!controller) proceed(area().selectionEnd);
  } else if (event.key === "Escape" && controller) {
    controller.abort();
  }
}

/** Note an edit: what was generated keeps its tokens unless the edit is within it. */
function edited(value) {
  let start = 0;
  while (start < Math.min(text.length, value.length) && text[start] === value[start]) start += 1;
  const most = Math.min(text.length, value.length) - start;
  let same = 0;
  while (same < most && text.at(-1 - same) === value.at(-1 - same)) same += 1;
  const end = text.length - same;
  const shift = value.length - text.length;
  runs = runs.flatMap((run) => {
    if (run.start + run.text.length <= start) return [run];
    return run.start >= end ? [{ ...run, start: run.start + shift }] : [];
  });
  text = value;
  keep();
}

// Generating

async function proceed(at, given = { keys: options() }) {
  if (!model()) return;
  before = { text, runs: structuredClone(runs), at, keys: given.keys };
  const run = { start: at, text: "", tokens: [], offsets: [], model: model().name };
  const end = text.slice(at);
  const head = text.slice(0, at);
  runs = [...runs.filter((each) => each.start + each.text.length <= at), run, ...shifted(runs, at)];
  controller = new AbortController();
  area().readOnly = true;
  drawState();
  say("Generating.");
  const show = (added) => {
    text = head + run.text + end;
    for (const each of runs) if (each !== run && each.start >= at) each.start += added;
    area().value = text;
    const caret = at + run.text.length;
    area().setSelectionRange(caret, caret);
    drawTokens();
  };
  try {
    await stream(head, run, given.keys, show);
    note(run.finish === "length" ? "Ended at the maximum number of tokens." : "Ended by the model, or a stop string.", run);
    say(run.text);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    note(error.message, run);
    say(error.message);
  } finally {
    controller = null;
    area().readOnly = false;
    keep();
    drawState();
    drawTokens();
  }
}

const shifted = (all, at) => all.filter((run) => run.start >= at);

async function stream(head, run, keys, show) {
  const body = {
    model: run.model,
    prompt: head,
    max_tokens: model().max_length,
    ...keys,
    logprobs: ALTERNATIVES,
    stream_options: { include_usage: true },
  };
  const { signal } = controller;
  try {
    await read(events("/v1/completions", body, signal), run, show);
  } catch (error) {
    if (error.code !== "context_length_exceeded") throw error;
    // The end of the text, as the model would see it after its window has moved.
    const { tokens, prefix } = await json("/api/prompt", { body: { model: run.model, text: head }, signal });
    const prompt = tokens.slice(Math.max(prefix, tokens.length - model().positions + prefix));
    await read(events("/v1/completions", { ...body, prompt }, signal), run, show);
  }
}

async function read(stream, run, show) {
  for await (const event of stream) {
    const choice = event.choices[0];
    if (event.timings) run.speed = event.timings;
    if (!choice) continue;
    run.seed = choice.seed;
    run.finish = choice.finish_reason ?? run.finish;
    run.text += choice.text;
    if (choice.logprobs) addTokens(run, choice.logprobs);
    show(choice.text.length);
  }
}

function addTokens(run, logprobs) {
  const { token_ids: ids, tokens, token_logprobs: own, top_logprobs: top, text_offset: offsets } = logprobs;
  ids.forEach((id, i) => {
    const best = Object.entries(top[i] ?? {}).map(([other, logprob]) => [
      other === tokens[i] ? id : -1,
      other,
      rounded(Math.exp(logprob)),
    ]);
    best.sort((a, b) => b[2] - a[2]);
    run.tokens.push({ id, text: "", p: rounded(Math.exp(own[i])), best });
    // In characters, of which JavaScript counts some as two.
    run.offsets.push(offsets[i]);
  });
  const characters = [...run.text];
  const first = Math.max(0, run.tokens.length - ids.length - 1);
  for (let i = first; i < run.tokens.length; i += 1) {
    run.tokens[i].text = characters.slice(run.offsets[i], run.offsets[i + 1] ?? characters.length).join("");
  }
}

function undo() {
  if (!before) return;
  restore();
  before = null;
  drawState();
}

function restore() {
  ({ text } = before);
  runs = structuredClone(before.runs);
  area().value = text;
  area().setSelectionRange(before.at, before.at);
  keep();
  drawTokens();
}

/** Generate the last continuation again, with the same seed or another. */
function again(isSame = false) {
  if (!before || controller) return;
  const { seed } = runs.find((run) => run.start === before.at) ?? {};
  const keys = isSame === true ? { ...before.keys, seed } : options();
  restore();
  proceed(before.at, { keys });
}

/** Put another token in the place of one, and continue from there. */
function take(run, index, [, other]) {
  if (controller) return;
  const start = run.start + run.tokens.slice(0, index).map((token) => token.text).join("").length;
  const rest = text.slice(run.start + run.text.length);
  area().value = text.slice(0, start) + other + rest;
  edited(area().value);
  proceed(start + other.length);
}

async function look(run, index) {
  try {
    const ahead = text.slice(0, run.start);
    const prompt = (await json("/api/prompt", { body: { model: run.model, text: ahead } })).tokens;
    const tokens = [...prompt, ...run.tokens.map((token) => token.id)];
    inspect({ model: run.model, tokens, position: prompt.length + index - 1 });
  } catch (error) {
    toast(error.message);
  }
}

// The page

function note(line, run) {
  const figures = [line];
  if (run.seed !== undefined) figures.push(`Seed ${run.seed}.`);
  if (run.speed) figures.push(`${run.speed.predicted_n} tokens, ${Math.round(run.speed.predicted_per_second)} per second.`);
  byId("notebook-note").textContent = figures.join(" ");
}

function drawState() {
  const node = byId("continue");
  node.replaceChildren(icon(controller ? "stop" : "more"), controller ? "Stop" : "Continue");
  for (const id of ["undo", "notebook-again", "notebook-repeat"]) byId(id).disabled = !before || controller !== null;
}

/** Show the text as tokens, or to write in. */
function showTokens(isTokens) {
  byId("notebook-tokens").hidden = !isTokens;
  area().hidden = isTokens;
  const toggle = byId("notebook-view");
  toggle.setAttribute("aria-pressed", String(isTokens));
  drawTokens();
  if (!isTokens) area().focus();
}

function drawTokens() {
  const node = byId("notebook-tokens");
  if (node.hidden) return;
  const parts = [];
  let at = 0;
  for (const run of [...runs].sort((a, b) => a.start - b.start)) {
    parts.push(text.slice(at, run.start));
    const span = el("span", { class: "run" });
    new TokenView(span, {
      take: (index, other) => take(run, index, other),
      inspect: (index) => look(run, index),
    }).show(run.text, run.tokens);
    parts.push(span);
    at = run.start + run.text.length;
  }
  parts.push(text.slice(at));
  node.replaceChildren(...parts);
}
