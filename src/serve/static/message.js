// A message on the page: its text, its branches, and what can be done with it.

import { button, el, grow, toast } from "./dom.js";
import { TokenView } from "./tokens.js";

const NOTES = {
  length: "Ended at the maximum number of tokens.",
  stopped: "Stopped.",
  interrupted: "Interrupted: the page was closed.",
  lost: "The connection was lost.",
};

export class MessageView {
  constructor(message, pane) {
    this.message = message;
    this.pane = pane;
    this.text = el("div", { class: "text" });
    this.foot = el("div", { class: "foot" });
    this.notes = el("div", { class: "notes" });
    const isUser = message.role === "user";
    const name = isUser ? "You" : message.model;
    this.node = el(
      "article",
      { class: `message ${message.role}`, "aria-label": isUser ? "Your message" : `Reply of ${name}` },
      isUser ? null : el("div", { class: "who" }, name),
      this.text,
      this.notes,
      this.foot,
    );
    this.tokens = isUser
      ? null
      : new TokenView(this.text, {
          take: (index, other) => pane.take(message, index, other),
          inspect: (index) => pane.inspect(message, index),
        });
  }

  draw() {
    if (this.isEditing) return;
    this.grow();
    this.notes.replaceChildren(...this.#notes());
    this.foot.replaceChildren(...this.#actions());
  }

  /** Show what was added to the text. */
  grow() {
    const { content, tokens, finish, role } = this.message;
    this.node.classList.toggle("streaming", finish === "streaming");
    if (role === "user") this.text.textContent = content;
    else this.tokens.show(content, tokens);
  }

  #notes() {
    const { finish, error, dropped } = this.message;
    const notes = [];
    if (dropped) notes.push(`${dropped} older messages were left out: they do not fit into the model's positions.`);
    if (NOTES[finish]) notes.push(NOTES[finish]);
    const lines = notes.map((note) => el("p", { class: finish === "lost" ? "note" : "note soft" }, note));
    return error ? [...lines, el("p", { class: "note" }, error)] : lines;
  }

  #actions() {
    const { message, pane } = this;
    if (message.finish === "streaming") return [];
    const actions = [this.#branches()];
    if (message.role === "user") {
      actions.push(button("Edit", "edit", () => this.#edit()));
    } else {
      const isBroken = ["lost", "refused"].includes(message.finish);
      actions.push(button(isBroken ? "Retry" : "Regenerate", "again", () => pane.again(message), { label: isBroken, kind: "small" }));
      if (message.tokens?.length && message.finish !== "stop") {
        actions.push(button("Continue", "more", () => pane.more(message), { label: true, kind: "small" }));
      }
    }
    actions.push(button("Copy", "copy", () => this.#copy()));
    if (message.seed !== undefined) {
      const repeat = button("Repeat with this seed", "seed", () => pane.repeat(message));
      repeat.append(el("span", { class: "figure" }, `seed ${message.seed}`));
      repeat.classList.remove("only-icon");
      repeat.setAttribute("aria-label", `Repeat with this seed: seed ${message.seed}`);
      actions.push(repeat);
    }
    if (message.speed) {
      const { predicted_n: count, predicted_per_second: speed } = message.speed;
      actions.push(el("span", { class: "figure soft" }, `${count} tokens, ${Math.round(speed)} per second`));
    }
    return actions.filter(Boolean);
  }

  #branches() {
    const { message, pane } = this;
    const all = pane.tree.siblings(message);
    if (all.length < 2) return null;
    const at = all.indexOf(message);
    const go = (to, name, iconName) => {
      const node = button(name, iconName, () => {
        pane.choose(all[to]);
        pane.views.get(all[to].id).node.querySelector(`[aria-label="${name}"]`)?.focus();
      });
      node.disabled = !all[to];
      return node;
    };
    return el(
      "span",
      { class: "branches", role: "group", "aria-label": "Branches" },
      go(at - 1, "Previous branch", "left"),
      el("span", { class: "figure" }, `${at + 1}/${all.length}`),
      go(at + 1, "Next branch", "right"),
    );
  }

  #edit() {
    const { message, pane } = this;
    this.isEditing = true;
    const area = el("textarea", { value: message.content, "aria-label": "Edit the message", rows: 1 });
    const end = () => {
      this.isEditing = false;
      this.node.classList.remove("editing");
      this.draw();
    };
    const submit = () => {
      const text = area.value.trim();
      end();
      if (text && text !== message.content) pane.edit(message, text);
    };
    area.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") end();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.node.classList.add("editing");
    this.text.replaceChildren(area);
    this.foot.replaceChildren(
      button("Send as a new branch", "send", submit, { label: true, kind: "small primary" }),
      button("Cancel", "close", end, { label: true, kind: "small" }),
    );
    grow(area);
    area.focus();
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.message.content);
      toast("Copied.");
    } catch {
      toast("The browser does not allow to copy: select the text.");
    }
  }
}
