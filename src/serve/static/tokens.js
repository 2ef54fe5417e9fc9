// Text as its tokens: tinted by probability, with a card of alternatives on hover and on focus.

import { button, byId, el, isPart, percent, relabel, visible } from "./dom.js";
import { load, save } from "./store.js";

const STORAGE = "agi2.tint";
const SHOW_AFTER = 120;
const HIDE_AFTER = 250;
const LONGEST_REST = 16;

export const tint = {
  on: load(STORAGE, true) === true,
  listeners: [],
  set(on) {
    this.on = on;
    save(STORAGE, on);
    this.listeners.forEach((listener) => listener());
  },
};

/**
 * Reads the log-probabilities of a chat's events into tokens { id, text, p, best }, with `bytes` if
 * these complete no character.
 */
export class TokenReader {
  #decoder = new TextDecoder();

  /** `before`: the tokens so far, which may end within a character. */
  constructor(before = []) {
    const first = before.findLastIndex((token) => !token.bytes) + 1;
    before.slice(first).forEach((token) => this.#decode(token.bytes));
  }

  /** `entries`: of `logprobs.content`. A token's text is the characters that it completes. */
  read(entries) {
    return entries.map((entry) => {
      const text = this.#decode(entry.bytes);
      return {
        id: entry.token_id,
        text,
        ...(text ? {} : { bytes: entry.bytes }),
        p: rounded(Math.exp(entry.logprob)),
        best: entry.top_logprobs.map((other) => [
          other.token_id,
          other.token,
          rounded(Math.exp(other.logprob)),
        ]),
      };
    });
  }

  #decode(bytes) {
    return this.#decoder.decode(new Uint8Array(bytes), { stream: true });
  }
}

/** Round a probability to four digits, as storage is small. */
export const rounded = (p) => Number(p.toPrecision(4));

/**
 * Return the tokens' parts of a text, or null if the text is not that of the tokens. A token that
 * the text does not show, such as the end of a turn, has an empty part.
 */
export function partsOf(text, tokens) {
  if (!tokens?.length) return null;
  let at = 0;
  const parts = tokens.map((token) => {
    // A reply has no white space at its start; its end may be a part of a token.
    const part = at || text.startsWith(token.text) ? token.text : token.text.trimStart();
    const rest = text.slice(at, at + part.length);
    if (!part.startsWith(rest)) return "";
    at += rest.length;
    return rest;
  });
  if (text.length - at > LONGEST_REST) return null;
  parts[parts.length - 1] += text.slice(at); // a character that has no end
  return parts;
}

const owners = new WeakMap(); // of each span: { view, index }

/** A text whose tokens can be chosen. */
export class TokenView {
  /**
   * `take(index, [id, text, p])` continues from an alternative; `inspect(index)` shows how the
   * model came to a token. `before` is plain text in front of the tokens.
   */
  constructor(node, { take, inspect }) {
    this.node = node;
    this.take = take;
    this.inspect = inspect;
    this.spans = [];
    node.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Show a text; only what is new is added while it grows. */
  show(text, tokens, before = "", after = "") {
    const parts = tint.on ? partsOf(text, tokens) : null;
    if (parts === null) {
      this.spans = [];
      this.node.textContent = before + text + after;
      return;
    }
    const grows = this.tokens === tokens && this.spans.length && !before && !after;
    this.tokens = tokens;
    if (!grows) {
      this.spans = [];
      this.node.replaceChildren(before);
    }
    // A character may have ended, or a part of a token was held back.
    if (this.spans.length) this.spans.at(-1).textContent = parts[this.spans.length - 1];
    const added = parts.slice(this.spans.length).map((part, offset) => this.#span(part, tokens, offset));
    this.node.append(...added, after);
    this.spans.push(...added);
    if (this.spans.length && !this.spans.some((span) => span.tabIndex === 0)) this.#rove(this.spans[0]);
  }

  #span(part, tokens, offset) {
    const index = this.spans.length + offset;
    const span = el("span", { class: `token tint-${level(tokens[index].p)}`, tabIndex: -1 }, part);
    owners.set(span, { view: this, index });
    return span;
  }

  /** Make a span the one that the Tab key reaches, with a name for screen readers. */
  #rove(span) {
    for (const each of this.spans) {
      if (each.tabIndex === 0) {
        each.tabIndex = -1;
        each.removeAttribute("role");
        each.removeAttribute("aria-label");
        each.removeAttribute("aria-haspopup");
      }
    }
    const { p } = this.tokens[this.spans.indexOf(span)];
    span.tabIndex = 0;
    span.setAttribute("role", "button");
    span.setAttribute("aria-haspopup", "dialog");
    span.setAttribute("aria-label", `${visible(span.textContent)}, ${percent(p)}, alternatives`);
  }

  focus(index) {
    const span = this.spans[Math.max(0, Math.min(index, this.spans.length - 1))];
    if (!span) return;
    this.#rove(span);
    span.focus();
  }

  #onKey(event) {
    const owner = owners.get(event.target);
    if (!owner) return;
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
    if (step !== undefined) this.focus(owner.index + step);
    else if (["ArrowDown", "Enter", " "].includes(event.key)) card.enter(event.target);
    else return;
    event.preventDefault();
  }
}

/** A class of the tint: 0 for a token that was nearly certain, 5 for one that was unlikely. */
function level(p) {
  return [0.9, 0.6, 0.3, 0.1, 0.02].findIndex((bound) => p >= bound) + 1 || 6;
}

// The card

const card = {
  span: null,
  timer: 0,
  get node() {
    return byId("card");
  },
  later(run, pause) {
    clearTimeout(this.timer);
    this.timer = setTimeout(run, pause);
  },
  show(span) {
    clearTimeout(this.timer);
    if (this.span === span) return;
    const { view, index } = owners.get(span);
    const token = view.tokens[index];
    this.span?.classList.remove("is-open");
    this.span = span;
    span.classList.add("is-open");
    this.node.replaceChildren(...this.content(view, index, token));
    this.node.hidden = false;
    this.place(span);
  },
  content(view, index, token) {
    const isTop = token.best.some(([id]) => id === token.id);
    const rows = isTop ? token.best : [[token.id, token.text, token.p], ...token.best];
    const act = (run) => () => {
      this.hide();
      run();
    };
    return [
      el(
        "div",
        { class: "card-head" },
        el("strong", {}, visible(token.text)),
        el("span", { class: "soft" }, percent(token.p)),
        button("Look inside", "eye", act(() => view.inspect(index)), { label: true, kind: "small" }),
      ),
      el(
        "ul",
        { class: "choices" },
        ...rows.map((row) => choice(row, token, view.take ? act(() => view.take(index, row)) : null)),
      ),
    ];
  },
  /** Put the card below the token, or above it where there is more room. */
  place(span) {
    const { node } = this;
    const rect = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const width = node.offsetWidth;
    const left = Math.max(8, Math.min(rect.left, innerWidth - width - 8));
    const isBelow = rect.bottom + node.offsetHeight + 8 < innerHeight || rect.top < node.offsetHeight;
    const top = isBelow ? rect.bottom + 4 : rect.top - node.offsetHeight - 4;
    node.style.left = `${left}px`;
    node.style.top = `${Math.max(8, top)}px`;
  },
  enter(span) {
    this.show(span);
    this.node.querySelector("button")?.focus();
  },
  hide(back = false) {
    clearTimeout(this.timer);
    this.node.hidden = true;
    this.span?.classList.remove("is-open");
    if (back) this.span?.focus();
    this.span = null;
  },
};

function choice([id, text, p], token, take) {
  const isOwn = id === token.id;
  const bar = el("span", { class: "bar" });
  bar.style.setProperty("--share", p);
  const shownText = visible(text);
  const parts = [el("span", { class: "choice-text" }, shownText), el("span", { class: "figure" }, percent(p)), bar];
  if (isOwn || !take || p === 0 || isPart(text)) {
    return el("li", { class: isOwn ? "own" : "", title: isOwn ? "The token that was sampled" : null }, ...parts);
  }
  const name = `Take “${shownText}” instead, ${percent(p)}`;
  return el("li", {}, el("button", { type: "button", onclick: take, "aria-label": name, title: "Take this one instead" }, ...parts));
}

/** Make the card work; to be called once. */
export function setUpTokens() {
  const spanOf = (event) => (owners.has(event.target) ? event.target : null);
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const span = spanOf(event);
    if (span) card.later(() => span.isConnected && card.show(span), SHOW_AFTER);
    else if (event.target.closest?.("#card")) clearTimeout(card.timer);
    else if (card.span && !card.node.contains(document.activeElement) && document.activeElement !== card.span) {
      card.later(() => card.hide(), HIDE_AFTER);
    }
  });
  document.addEventListener("focusin", (event) => {
    const span = spanOf(event);
    if (span) {
      const { view, index } = owners.get(span);
      if (span.tabIndex !== 0) view.focus(index);
      card.show(span);
    } else if (card.span && !card.node.contains(event.target)) card.hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !card.span) return;
    const isInside = card.node.contains(document.activeElement);
    event.stopPropagation();
    card.hide(isInside);
  }, true);
  document.addEventListener("pointerdown", (event) => {
    if (card.span && !spanOf(event) && !event.target.closest?.("#card")) card.hide();
  });
  card.node.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...card.node.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  });
  document.addEventListener("scroll", () => card.span && card.place(card.span), true);
  const toggle = byId("tint");
  const draw = () => {
    toggle.setAttribute("aria-pressed", String(tint.on));
    relabel(toggle, tint.on ? "Hide probabilities" : "Show probabilities", "eye");
  };
  toggle.addEventListener("click", () => {
    tint.set(!tint.on);
    draw();
  });
  draw();
}
