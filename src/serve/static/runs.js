// The runs: a table, live curves, samples, and a comparison of those that are selected.

import { json } from "./api.js";
import { chart, figure } from "./chart.js";
import { byId, el } from "./dom.js";

const REFRESH = 3000;
const MAX_SELECTED = 6;

const selected = new Set();
let runs = [];
let timer = 0;
let isShown = false;
let isLoading = false;

/** Show the runs while the tab is open; they are read again while one is running. */
export function showRuns(shown) {
  isShown = shown;
  clearTimeout(timer);
  if (shown) refresh();
}

export function setUpRuns() {
  byId("refresh").addEventListener("click", refresh);
  let resized = 0;
  addEventListener("resize", () => {
    clearTimeout(resized);
    if (isShown) resized = setTimeout(drawSelected, 200);
  });
  document.addEventListener("visibilitychange", () => {
    if (isShown && !document.hidden) refresh();
  });
}

const isRunning = (run) => ["preparing", "training", "validating"].includes(run.state);

async function refresh() {
  if (isLoading) return;
  isLoading = true;
  clearTimeout(timer);
  const note = byId("runs-note");
  try {
    const found = await json("/api/runs");
    runs = found.runs;
    note.textContent = runs.length ? `Runs in ${found.folder}` : `There are no runs in ${found.folder}.`;
    for (const id of [...selected]) if (!runs.some((run) => run.id === id)) selected.delete(id);
    if (!selected.size && runs.length) selected.add(runs[0].id);
    drawTable();
    await drawSelected();
  } catch (error) {
    note.textContent = error.message;
  } finally {
    isLoading = false;
  }
  const isLive = runs.some(isRunning);
  byId("live").hidden = !isLive;
  if (isShown && isLive && !document.hidden) timer = setTimeout(refresh, REFRESH);
}

function drawTable() {
  byId("runs-body").replaceChildren(
    ...runs.map((run) => {
      const box = el("input", { type: "checkbox", checked: selected.has(run.id), id: `select-${run.id}`, "aria-label": `Show ${run.name}` });
      box.addEventListener("change", () => toggle(run.id, box));
      return el(
        "tr",
        { class: selected.has(run.id) ? "selected" : "" },
        el("td", {}, box),
        el("th", { scope: "row" }, el("label", { for: box.id }, run.name)),
        el("td", {}, state(run)),
        el("td", { class: "figure" }, progress(run)),
        el("td", { class: "figure" }, figure(run.val_loss)),
        el("td", { class: "figure" }, figure(run.bits_per_byte)),
        el("td", { class: "figure" }, count(run.parameters)),
        el("td", {}, new Date(1000 * run.changed).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })),
      );
    }),
  );
}

function state(run) {
  const kind = isRunning(run) ? "live" : run.state === "broken" ? "broken" : "";
  return el("span", { class: `state ${kind}`, title: run.problem || null }, run.state);
}

function progress(run) {
  const steps = run.steps.toLocaleString("en");
  return run.total_steps ? `${steps} of ${run.total_steps.toLocaleString("en")}` : steps;
}

function count(number) {
  if (!number) return "–";
  return number < 1e6 ? number.toLocaleString("en") : `${(number / 1e6).toPrecision(3)} million`;
}

function toggle(id, box) {
  if (box.checked && selected.size >= MAX_SELECTED) {
    box.checked = false;
    byId("runs-note").textContent = `At most ${MAX_SELECTED} runs are shown at a time.`;
    return;
  }
  if (box.checked) selected.add(id);
  else selected.delete(id);
  box.closest("tr").classList.toggle("selected", box.checked);
  drawSelected();
}

let drawn = 0;

async function drawSelected() {
  const number = ++drawn;
  const ids = runs.map((run) => run.id).filter((id) => selected.has(id));
  const node = byId("run-details");
  try {
    const details = await Promise.all(ids.map((id) => json(`/api/runs/${id}`)));
    const comparison = ids.length > 1 ? await json("/api/runs/compare", { body: { runs: ids } }) : null;
    if (number !== drawn) return;
    const open = [...node.querySelectorAll("details[open]")].map((each) => each.dataset.name);
    node.replaceChildren(
      ...(details.length ? [curves(details)] : [el("p", { class: "soft" }, "Select runs to see their curves.")]),
      ...(comparison ? [compared("Results", comparison.results, details), compared("Configuration: what differs", comparison.differences, details)] : []),
      ...details.map((run) => samples(run, open)),
    );
  } catch (error) {
    if (number === drawn) node.replaceChildren(el("p", { class: "note" }, error.message));
  }
}

function curves(details) {
  const isOne = details.length === 1;
  const { unit, x_name: xName } = details[0];
  const isSameUnit = details.every((run) => run.unit === unit);
  const losses = details.flatMap((run, index) => [
    { name: isOne ? "train" : `${run.name} (train)`, color: index, points: run.train_loss, pale: true },
    { name: isOne ? "val" : `${run.name} (val)`, color: isOne ? 1 : index, points: run.val_loss, dots: true },
  ]);
  const one = (key) => details.map((run, index) => ({ name: run.name, color: index, points: run[key] }));
  // The pixels of a figure, less its padding.
  const room = byId("run-details").clientWidth;
  const isNarrow = innerWidth < 724; // as in the style sheet
  const large = { xName, width: Math.max(240, room - 34), height: isNarrow ? 230 : 320 };
  const small = { xName, width: isNarrow ? large.width : (room - 16) / 2 - 34, height: isNarrow ? 190 : 220 };
  return el(
    "div",
    { class: "charts" },
    chart({ title: "Loss", unit: isSameUnit ? unit : "different units", series: losses, ...large }),
    chart({ title: "Learning rate", unit: "", series: one("learning_rate"), ...small }),
    chart({ title: "Speed", unit: "tokens per second", series: one("speed"), ...small }),
  );
}

function compared(title, rows, details) {
  if (!rows.length) return el("p", { class: "soft" }, `${title}: nothing.`);
  return el(
    "section",
    {},
    el("h3", {}, title),
    el(
      "div",
      { class: "wide", tabIndex: 0, role: "region", "aria-label": title },
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, el("td", {}), ...details.map((run) => el("th", { scope: "col" }, run.name)))),
        el(
          "tbody",
          {},
          ...rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell)))),
        ),
      ),
    ),
  );
}

function samples(run, open) {
  const all = [...run.samples].reverse();
  const cards = all.map(({ step, text }) => el("li", {}, el("small", { class: "soft" }, `step ${step.toLocaleString("en")}`), el("pre", {}, text)));
  const older = cards.slice(1);
  const name = `older-${run.id}`;
  return el(
    "section",
    { class: "samples" },
    el("h3", {}, `Samples of ${run.name}`),
    cards.length ? el("ol", {}, cards[0]) : el("p", { class: "soft" }, "No samples are logged."),
    older.length
      ? el("details", { open: open.includes(name), data: { name } }, el("summary", {}, `${older.length} older`), el("ol", {}, ...older))
      : null,
  );
}
