// The chat: conversations, the composer, and one or two models that reply.

import { ask, button, byId, download, el, grow, icon, say, toast } from "./dom.js";
import { Pane } from "./pane.js";
import { onChange, options, setOption, showKeys } from "./settings.js";
import {
  deleteConversation,
  emptyConversation,
  exportText,
  importText,
  load,
  loadConversations,
  save,
  saveConversation,
} from "./store.js";
import { tint } from "./tokens.js";

const CURRENT = "agi2.current";
const SAVE_AFTER = 500;

let models = [];
let conversations = [];
let current = null;
let panes = [];
const unsaved = new Set();
let timer = 0;

const modelOf = (name) => models.find((model) => model.name === name);

/** Show the chat, once the models are known. */
export function setUpChat(found) {
  models = found;
  conversations = loadConversations();
  for (const { panes: each } of conversations) each.forEach(endBroken);
  open(conversations.find((each) => each.id === load(CURRENT, "")) ?? create());
  const composer = byId("composer");
  const field = byId("message");
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    if (isBusy()) stop();
    else send();
  });
  field.addEventListener("input", () => grow(field));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!isBusy()) send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isBusy() && !document.querySelector("dialog[open]")) stop();
  });
  byId("new-chat").addEventListener("click", () => {
    open(create());
    field.focus();
  });
  byId("system").addEventListener("input", (event) => {
    current.system = event.target.value;
    changed();
  });
  byId("second").addEventListener("click", toggleSecond);
  setUpFiles();
  onChange(drawSeed);
  drawSeed();
  tint.listeners.push(() => panes.forEach((pane) => pane.draw()));
  document.addEventListener("chat-shown", drawModel);
  addEventListener("pagehide", saveNow);
}

/** A reply that was streamed when the page was closed has no end. */
function endBroken({ tree }) {
  for (const node of Object.values(tree.nodes)) {
    if (node.finish === "streaming") node.finish = "interrupted";
  }
}

function create() {
  // An empty conversation is used again.
  const empty = conversations.find((each) => !Object.keys(each.panes[0].tree.nodes).length);
  if (empty) return empty;
  const made = emptyConversation(current?.panes[0].model ?? models[0]?.name ?? "");
  conversations.unshift(made);
  return made;
}

function open(conversation) {
  stop();
  current = conversation;
  save(CURRENT, current.id);
  byId("system").value = current.system;
  byId("system-box").open = current.system !== "";
  buildPanes();
  drawList();
}

function buildPanes() {
  panes = current.panes.map((data, index) => new Pane(data, { conversation: current, changed, modelOf, busy: drawBusy, index }));
  byId("panes").replaceChildren(...panes.map((pane) => column(pane)));
  byId("panes").classList.toggle("two", panes.length === 2);
  byId("second").setAttribute("aria-pressed", String(panes.length === 2));
  byId("second").hidden = models.length < 2 && panes.length < 2;
  panes.forEach((pane) => pane.draw());
  drawModel();
  drawBusy();
}

function column(pane) {
  const name = pane.index ? "Second model" : "Model";
  const select = el(
    "select",
    { "aria-label": name, class: "model", data: { pane: pane.index } },
    ...models.map((model) => el("option", { value: model.name }, model.name)),
  );
  if (!modelOf(pane.data.model)) {
    const gone = pane.data.model || "no model";
    select.prepend(el("option", { value: pane.data.model }, `${gone} (not served)`));
  }
  select.value = pane.data.model;
  select.addEventListener("change", () => {
    pane.data.model = select.value;
    changed();
    drawModel();
  });
  const close = pane.index ? button("Close the second model", "close", toggleSecond) : null;
  return el("section", { class: "pane", "aria-label": name }, el("div", { class: "pane-head" }, select, close), pane.node);
}

function drawModel() {
  const model = modelOf(panes[0].data.model);
  showKeys(model);
  const hasTemplate = panes.some((pane) => modelOf(pane.data.model)?.chat_template);
  byId("system-box").hidden = !hasTemplate;
}

async function toggleSecond() {
  if (panes.length === 1) {
    const other = models.find((model) => model.name !== panes[0].data.model) ?? models[0];
    current.panes.push({ model: other.name, tree: panes[0].tree.copy().data });
  } else {
    const isKept = !(await ask("Close the second model? Its replies in this conversation are deleted.", "Close it"));
    if (isKept) return;
    panes[1].stop();
    current.panes.pop();
  }
  changed();
  buildPanes();
}

// Sending

const isBusy = () => panes.some((pane) => pane.isBusy);

function stop() {
  panes.forEach((pane) => pane.stop());
}

async function send() {
  const field = byId("message");
  const text = field.value.trim();
  if (!text) return;
  field.value = "";
  grow(field);
  if (!current.title) current.title = text.slice(0, 60);
  current.created = Date.now();
  conversations = [current, ...conversations.filter((each) => each !== current)];
  drawList();
  await Promise.all(panes.map((pane) => pane.send(text)));
}

function drawBusy() {
  const node = byId("send");
  const busy = isBusy();
  node.replaceChildren(icon(busy ? "stop" : "send"));
  node.setAttribute("aria-label", busy ? "Stop" : "Send");
  node.title = busy ? "Stop (Escape)" : "Send (Enter)";
}

/** Show a fixed seed beside the composer, since every reply then is the same. */
function drawSeed() {
  const { seed } = options();
  byId("seed-chip").hidden = seed === undefined;
  byId("seed-chip").replaceChildren(
    `seed ${seed}`,
    button("Use random seeds again", "close", () => {
      setOption("seed", undefined);
      showKeys(modelOf(panes[0].data.model));
    }),
  );
}

// The list, and keeping it

function changed(conversation = current) {
  unsaved.add(conversation);
  timer ||= setTimeout(saveNow, SAVE_AFTER);
}

function saveNow() {
  clearTimeout(timer);
  timer = 0;
  const isKept = [...unsaved].every((each) => saveConversation(each, conversations));
  unsaved.clear();
  if (!isKept) toast("The browser has no room for this conversation: export it, and delete old ones.");
}

function drawList() {
  byId("conversations").replaceChildren(
    ...conversations.map((each) => {
      const title = each.title || "New conversation";
      const entry = el("button", { type: "button", class: "entry", title, onclick: () => open(each) }, title);
      if (each === current) entry.setAttribute("aria-current", "true");
      return el("li", {}, entry, button(`Delete “${title}”`, "trash", () => remove(each)));
    }),
  );
}

async function remove(conversation) {
  const title = conversation.title || "New conversation";
  if (!(await ask(`Delete “${title}”?`, "Delete"))) return;
  deleteConversation(conversation);
  unsaved.delete(conversation);
  conversations = conversations.filter((each) => each !== conversation);
  if (conversation === current) open(conversations[0] ?? create());
  else drawList();
}

function setUpFiles() {
  byId("export").addEventListener("click", () => {
    const kept = conversations.filter((each) => Object.keys(each.panes[0].tree.nodes).length);
    download("agi2-conversations.json", exportText(kept), "application/json");
  });
  const file = byId("import-file");
  byId("import").addEventListener("click", () => file.click());
  file.addEventListener("change", async () => {
    try {
      const found = importText(await file.files[0].text());
      conversations = [...found, ...conversations];
      found.forEach((each) => {
        each.panes.forEach(endBroken);
        changed(each);
      });
      if (found.length) open(found[0]);
      say(`${found.length} conversations imported.`);
    } catch (error) {
      toast(error.message);
      say(error.message);
    }
    file.value = "";
  });
}
