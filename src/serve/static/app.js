// The page: tabs, theme, drawers, and the start.

import { connection, json } from "./api.js";
import { setUpChat } from "./chat.js";
import { byId, icon, relabel, say } from "./dom.js";
import { setUpNotebook, showNotebook } from "./notebook.js";
import { setUpRuns, showRuns } from "./runs.js";
import { load, save } from "./store.js";
import { setUpTokens } from "./tokens.js";

const TABS = ["chat", "notebook", "runs"];
const TAB = "agi2.tab";
const THEME = "agi2.theme";

function drawIcons() {
  for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
}

// Tabs, as in the ARIA practices: arrow keys choose among them.

function showTab(name) {
  for (const each of TABS) {
    const isChosen = each === name;
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
  document.body.dataset.tab = name;
  save(TAB, name);
  showRuns(name === "runs");
  if (name === "notebook") showNotebook();
  if (name === "chat") document.dispatchEvent(new Event("chat-shown"));
}

function setUpTabs() {
  for (const name of TABS) {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => showTab(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = TABS.at((TABS.indexOf(name) + step) % TABS.length);
      showTab(next);
      byId(`tab-${next}`).focus();
    });
  }
}

// The theme: the system's, until another is chosen.

function setUpTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const node = byId("theme");
  const draw = () => {
    const theme = load(THEME, null) ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    relabel(node, theme === "dark" ? "Light theme" : "Dark theme", theme === "dark" ? "sun" : "moon");
  };
  node.addEventListener("click", () => {
    save(THEME, document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    draw();
  });
  dark.addEventListener("change", draw);
  draw();
}

// The drawers at the sides: beside the content where there is room, over it on a phone.

function setUpDrawers() {
  for (const name of ["list", "keys"]) {
    const toggle = byId(`toggle-${name}`);
    const isWide = matchMedia("(min-width: 1000px)").matches;
    const set = (isOpen) => {
      document.body.classList.toggle(`${name}-open`, isOpen);
      toggle.setAttribute("aria-expanded", String(isOpen));
    };
    set(isWide);
    toggle.addEventListener("click", () => {
      const isOpen = toggle.getAttribute("aria-expanded") === "true";
      if (!isOpen && !matchMedia("(min-width: 1000px)").matches) closeDrawers();
      set(!isOpen);
    });
  }
  const closeDrawers = () => {
    for (const name of ["list", "keys"]) {
      document.body.classList.remove(`${name}-open`);
      byId(`toggle-${name}`).setAttribute("aria-expanded", "false");
    }
  };
  byId("shade").addEventListener("click", closeDrawers);
  byId("conversations").addEventListener("click", (event) => {
    const isNarrow = !matchMedia("(min-width: 1000px)").matches;
    if (isNarrow && event.target.closest(".entry")) closeDrawers();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !matchMedia("(min-width: 1000px)").matches) closeDrawers();
  });
}

async function start() {
  drawIcons();
  setUpTheme();
  setUpTabs();
  setUpDrawers();
  setUpTokens();
  setUpRuns();
  byId("connection-retry").addEventListener("click", () => connection.probe());
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const node of dialog.querySelectorAll("[data-close]")) {
      node.addEventListener("click", () => dialog.close(node.dataset.close));
    }
  }
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("key").close("yes");
  });
  showTab(TABS.includes(load(TAB, "")) ? load(TAB, "") : "chat");
  await loadModels();
}

async function loadModels() {
  try {
    const { models } = await json("/api/models");
    setUpChat(models);
    setUpNotebook(models);
    document.body.classList.add("ready");
    if (document.body.dataset.tab === "notebook") showNotebook();
  } catch (error) {
    byId("start-note").textContent = error.message;
    byId("start-note").hidden = false;
    say(error.message);
    connection.listeners.push(() => {
      if (!document.body.classList.contains("ready")) location.reload();
    });
  }
}

start();
