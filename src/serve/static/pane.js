// One model's side of a conversation: its messages, and the replies that it generates.

import { ApiError, events, json } from "./api.js";
import { el, say, toast } from "./dom.js";
import { inspect } from "./inspect.js";
import { MessageView } from "./message.js";
import { options, setOptions } from "./settings.js";
import { partsOf, TokenReader } from "./tokens.js";
import { Tree } from "./tree.js";

const ALTERNATIVES = 6;

export class Pane {
  /** `data`: { model, tree }. `host`: the conversation, and functions to call after changes. */
  constructor(data, host) {
    this.data = data;
    this.host = host;
    this.index = host.index;
    this.tree = new Tree(data.tree);
    this.views = new Map();
    this.controller = null;
    this.node = el("div", { class: "messages" });
  }

  get isBusy() {
    return this.controller !== null;
  }

  stop() {
    this.controller?.abort();
  }

  draw() {
    const path = this.tree.path;
    const nodes = path.map((message) => {
      if (!this.views.has(message.id)) this.views.set(message.id, new MessageView(message, this));
      const view = this.views.get(message.id);
      view.draw();
      return view.node;
    });
    const empty = el("p", { class: "empty soft" }, "Write a message to begin.");
    this.node.replaceChildren(...(nodes.length ? nodes : [empty]));
  }

  // What the user does

  send(text) {
    const last = this.tree.path.at(-1);
    const message = this.tree.add(last?.id ?? "", "user", text);
    this.#changed();
    return this.#reply(message);
  }

  edit(message, text) {
    const edited = this.tree.add(message.parent, "user", text);
    this.#changed();
    return this.#reply(edited);
  }

  again(message) {
    return this.#reply(this.tree.nodes[message.parent]);
  }

  /** Generate a reply again with the keys and the seed that it had: the same text. */
  repeat(message) {
    setOptions({ ...message.options, seed: message.seed });
    return this.again(message);
  }

  choose(message) {
    this.tree.choose(message);
    this.#changed();
  }

  /** Continue a reply where it ended. */
  more(message) {
    return this.#continue(message, message.tokens, message.content);
  }

  /** Begin a branch with another token in the place of one, and continue from there. */
  take(message, index, [id, text, p]) {
    const kept = message.tokens.slice(0, index);
    const other = { id, text, p, best: message.tokens[index].best };
    const tokens = [...kept, other];
    // Not all tokens are in the text: the end of a turn is not.
    const parts = partsOf(message.content, message.tokens) ?? [];
    return this.#continue(message, tokens, (parts.slice(0, index).join("") + text).trimStart());
  }

  async inspect(message, index) {
    try {
      const prompt = await this.#promptTokens(message);
      const tokens = [...prompt, ...message.tokens.map((token) => token.id)];
      inspect({ model: message.model, tokens, position: prompt.length + index - 1 });
    } catch (error) {
      toast(error.message);
    }
  }

  // Generating

  #reply(parent) {
    const message = this.#begin(parent.id, "", []);
    const keys = options();
    return this.#run(message, async (signal) => {
      message.dropped = 0;
      for (;;) {
        const messages = this.#messagesOf(message);
        const body = { model: message.model, messages, ...inChat(keys) };
        try {
          await this.#read(message, events("/v1/chat/completions", withLogprobs(body), signal));
          return;
        } catch (error) {
          // The oldest turn is left out until the rest fits into the model's positions.
          if (error.code !== "context_length_exceeded" || messages.length < 3) throw error;
          message.dropped += 2;
        }
      }
    });
  }

  #continue(from, tokens, content) {
    const message = this.#begin(from.parent, content, [...tokens]);
    message.dropped = from.dropped;
    const keys = options();
    return this.#run(message, async (signal) => {
      const prompt = await this.#promptTokens(message);
      const ids = [...prompt, ...tokens.map((token) => token.id)];
      const body = { model: message.model, tokens: ids, ...keys };
      await this.#read(message, events("/api/continue", withLogprobs(body), signal));
    });
  }

  #begin(parent, content, tokens) {
    this.stop();
    const model = this.data.model;
    const message = this.tree.add(parent, "assistant", content, { model, tokens, finish: "streaming", options: options() });
    delete message.options.seed;
    this.#changed();
    return message;
  }

  async #run(message, generate) {
    const controller = new AbortController();
    this.controller = controller;
    this.host.busy();
    this.#follow(true);
    say("Generating a reply.");
    try {
      await generate(controller.signal);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      message.finish = error.kind;
      if (error.kind === "refused") message.error = error.message;
      say(error.message);
    } finally {
      if (this.controller === controller) this.controller = null;
      this.host.busy();
      this.host.changed(this.host.conversation);
      this.draw();
      this.#follow();
    }
    if (!message.error) say(message.content || "The reply is empty.");
  }

  /** Add the events of a stream to a message. */
  async #read(message, stream) {
    const reader = new TokenReader(message.tokens);
    for await (const event of stream) {
      const choice = event.choices[0];
      if (choice) {
        message.seed = choice.seed;
        message.content += choice.delta.content ?? "";
        if (choice.logprobs) message.tokens.push(...reader.read(choice.logprobs.content));
        if (choice.finish_reason) message.finish = choice.finish_reason;
        this.views.get(message.id)?.grow();
        this.#follow();
      }
      if (event.timings) message.speed = event.timings;
      this.host.changed(this.host.conversation);
    }
  }

  /** The messages before a reply, as a request has them. */
  #messagesOf(message) {
    const before = this.tree.pathTo(message).slice(message.dropped ?? 0, -1);
    const messages = before.map(({ role, content }) => ({ role, content }));
    const { system } = this.host.conversation;
    const hasSystem = system.trim() && this.host.modelOf(message.model)?.chat_template;
    return hasSystem ? [{ role: "system", content: system }, ...messages] : messages;
  }

  async #promptTokens(message) {
    const body = { model: message.model, messages: this.#messagesOf(message) };
    return (await json("/api/prompt", { body })).tokens;
  }

  /** Keep the end in view, if it was, or if `always`. */
  #follow(always = false) {
    const page = this.node.closest(".scroll");
    if (!page) return;
    const isNear = page.scrollHeight - page.scrollTop - page.clientHeight < 120;
    if (always || isNear) page.scrollTop = page.scrollHeight;
  }

  #changed() {
    this.host.changed(this.host.conversation);
    this.draw();
  }
}

/** Rename the key that has another name in a chat. */
function inChat({ max_tokens, ...keys }) {
  return max_tokens === undefined ? keys : { ...keys, max_completion_tokens: max_tokens };
}

function withLogprobs(body) {
  return { ...body, logprobs: true, top_logprobs: ALTERNATIVES, stream_options: { include_usage: true } };
}
