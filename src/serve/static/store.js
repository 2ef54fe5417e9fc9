// Conversations, the notebook and settings in the browser's storage; export and import.

import { newId } from "./tree.js";

const CONVERSATION = "agi2.conversation.";
const FORMAT = "agi2-conversations-1";

/** Return a value of the browser's storage, or `fallback` if there is none that can be read. */
export function load(name, fallback) {
  try {
    const found = JSON.parse(localStorage.getItem(name));
    return found ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keep a value; return whether there was room for it. */
export function save(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function emptyConversation(model) {
  return {
    id: newId(),
    title: "",
    created: Date.now(),
    system: "",
    panes: [{ model, tree: { nodes: {}, chosen: {} } }],
  };
}

/** Return the conversations, newest first; damaged ones are left out. */
export function loadConversations() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(CONVERSATION));
  const found = names.map((name) => checked(load(name, null))).filter(Boolean);
  return found.sort((a, b) => b.created - a.created);
}

/**
 * Keep a conversation, under a name of its own so that two tabs do not overwrite each other's. If
 * there is no room, drop the tokens' probabilities of the oldest. Return whether the text was kept.
 */
export function saveConversation(conversation, all) {
  const keep = (each) => save(CONVERSATION + each.id, each);
  if (keep(conversation)) return true;
  for (const each of [...all].reverse()) {
    for (const pane of each.panes) {
      for (const node of Object.values(pane.tree.nodes)) delete node.tokens;
    }
    keep(each);
    if (keep(conversation)) return true;
  }
  return false;
}

export function deleteConversation(conversation) {
  localStorage.removeItem(CONVERSATION + conversation.id);
}

export function exportText(conversations) {
  return JSON.stringify({ format: FORMAT, conversations }, null, 1);
}

/** Return the conversations of an exported text, with new ids; raise an error that says what is wrong. */
export function importText(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) {
    throw new Error("This file has no conversations that this page has exported.");
  }
  const found = data.conversations.map(checked);
  const broken = found.filter((each) => each === null).length;
  if (broken) throw new Error(`${broken} of ${found.length} conversations in this file are damaged.`);
  return found.map((each) => ({ ...each, id: newId() }));
}

// What a file or the storage has is not trusted: everything is rebuilt from checked parts.

const ID = /^id0[a-z0-9]{1,40}$/; // as `newId` makes them: no name that every object has
const isText = (value) => typeof value === "string";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function checked(value) {
  if (!isObject(value) || !Array.isArray(value.panes)) return null;
  const panes = value.panes.slice(0, 2).map(checkedPane);
  if (!panes.length || panes.includes(null)) return null;
  return {
    id: ID.test(value.id) ? value.id : newId(),
    title: isText(value.title) ? value.title : "",
    created: isNumber(value.created) ? value.created : Date.now(),
    system: isText(value.system) ? value.system : "",
    panes,
  };
}

function checkedPane(value) {
  if (!isObject(value) || !isObject(value.tree) || !isObject(value.tree.nodes)) return null;
  const nodes = {};
  for (const [id, node] of Object.entries(value.tree.nodes)) {
    const isMessage = isObject(node) && ["user", "assistant"].includes(node.role);
    if (!isMessage || !isText(node.content) || node.id !== id || !ID.test(id)) return null;
    nodes[id] = checkedNode(node);
  }
  for (const node of Object.values(nodes)) {
    if (!endsAtStart(node, nodes)) return null;
  }
  const chosen = {};
  for (const node of Object.values(nodes)) chosen[node.parent] = node.id;
  for (const [parent, child] of Object.entries(value.tree.chosen ?? {})) {
    if (nodes[child]?.parent === parent) chosen[parent] = child;
  }
  return { model: isText(value.model) ? value.model : "", tree: { nodes, chosen } };
}

function endsAtStart(node, nodes) {
  const seen = new Set();
  for (let at = node; at.parent !== ""; at = nodes[at.parent]) {
    if (seen.has(at.id) || !Object.hasOwn(nodes, at.parent)) return false;
    seen.add(at.id);
  }
  return true;
}

function checkedNode(node) {
  const kept = { id: node.id, parent: isText(node.parent) ? node.parent : "" };
  kept.role = node.role;
  kept.content = node.content;
  for (const key of ["model", "finish", "error"]) if (isText(node[key])) kept[key] = node[key];
  if (isNumber(node.seed)) kept.seed = node.seed;
  if (isNumber(node.dropped)) kept.dropped = node.dropped;
  if (isObject(node.options)) kept.options = node.options;
  if (Array.isArray(node.tokens) && node.tokens.every(isToken)) kept.tokens = node.tokens;
  return kept;
}

/** A token: { id, text, p, best: [[id, text, p], …] }. */
function isToken(value) {
  const isOther = (other) =>
    Array.isArray(other) && isNumber(other[0]) && isText(other[1]) && isNumber(other[2]);
  return (
    isObject(value) &&
    isNumber(value.id) &&
    isText(value.text) &&
    isNumber(value.p) &&
    Array.isArray(value.best) &&
    value.best.every(isOther)
  );
}
