// Elements, icons, dialogs and messages to screen readers. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

/** Create an element: `options` are properties, `on…` listeners, and attributes with a dash or `role`. */
export function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.includes("-") || key === "role" || key === "for") node.setAttribute(key, value);
    else if (key === "class") node.className = value;
    else if (key === "data") Object.assign(node.dataset, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Create an SVG element with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

// Paths of 24 x 24 icons, drawn with a stroke.
const ICONS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  left: "M15 6l-6 6 6 6",
  right: "M9 6l6 6-6 6",
  close: "M6 6l12 12M18 6L6 18",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  more: "M5 12h14M13 6l6 6-6 6",
  seed: "M12 3v4M12 17v4M3 12h4M17 12h4M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  menu: "M4 7h16M4 12h16M4 17h16",
  tune: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M4 12H2M22 12h-2M5 5l1.5 1.5M17.5 17.5L19 19M19 5l-1.5 1.5M6.5 17.5L5 19",
  moon: "M20 14A8 8 0 1 1 10 4a6.5 6.5 0 0 0 10 10z",
  key: "M14 10a4 4 0 1 0-3.5 4L13 16.5V19h2.5v2H19v-3.5L13.9 12",
  columns: "M4 5h16v14H4zM12 5v14",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  undo: "M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
};

/** Create an icon, which screen readers skip. */
export function icon(name) {
  return svg(
    "svg",
    { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: ICONS[name] }),
  );
}

/** Create a button with an icon, and a text that is shown, or only a name. */
export function button(name, iconName, onclick, { label = false, kind = "" } = {}) {
  return el(
    "button",
    {
      type: "button",
      class: `button ${kind} ${label ? "" : "only-icon"}`,
      onclick,
      "aria-label": label ? null : name,
      title: label ? null : name,
    },
    iconName ? icon(iconName) : null,
    label ? name : null,
  );
}

/** Replace the icon and the name of a button made by `button`. */
export function relabel(node, name, iconName) {
  node.replaceChildren(icon(iconName));
  node.setAttribute("aria-label", name);
  node.title = name;
}

let spoken = 0;
/** Have a screen reader say a text. */
export function say(text) {
  const region = byId("spoken");
  // The same text twice must be said twice: it alternates between two elements.
  spoken = 1 - spoken;
  region.children[1 - spoken].textContent = "";
  region.children[spoken].textContent = text;
}

/** Ask before something is lost; return whether the answer is yes. */
export function ask(question, yes) {
  const dialog = byId("ask");
  byId("ask-text").textContent = question;
  byId("ask-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Show a short message for a few seconds. */
export function toast(text) {
  const node = byId("toast");
  node.textContent = text;
  node.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (node.hidden = true), 5000);
}

/** Return a probability as text, such as `43 %`, `0.2 %` or `< 0.01 %`. */
export function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  const digits = value >= 10 ? 0 : value >= 1 ? 1 : 2;
  // Not 100 % unless it is.
  const shown = value < 100 && value > 99.5 ? Math.min(value, 99.99).toFixed(2) : value.toFixed(digits);
  return `${shown} %`;
}

/** Return whether a token's text stands for bytes that are only a part of a character. */
export const isPart = (text) => /^bytes:(\\x[0-9a-f]{2})+$/.test(text);

/** Return a token's text with its white space visible. */
export function visible(text) {
  if (text === "" || isPart(text)) return "(part of a character)";
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (run) => "␣".repeat(run.length));
}

/** Offer a text as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Make the height of a text area that of its text. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
