// Requests to the server: JSON, streams of events, the key, and whether the server can be reached.

import { byId, say } from "./dom.js";

const KEY = "agi2.key";
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10_000;

/** An error whose message is for the user. `kind`: `refused` (by the server), `lost` or `stopped`. */
export class ApiError extends Error {
  constructor(message, kind, { status = 0, code = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.code = code;
  }
}

/** Send a request; return the response if its status is below 400. */
async function send(path, { body, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    throw failure(error, signal);
  }
  connection.isBack();
  if (response.ok) return response;
  const found = (await response.json().catch(() => null))?.error ?? {};
  if (response.status === 401) return askForKey(found.message, () => send(path, { body, signal }));
  throw new ApiError(found.message ?? `The server answered ${response.status}.`, "refused", {
    status: response.status,
    code: found.code,
  });
}

function failure(error, signal) {
  if (error instanceof ApiError) return error;
  if (signal?.aborted) return new ApiError("Stopped.", "stopped");
  connection.isLost();
  return new ApiError("The connection to the server was lost.", "lost");
}

/** Return the JSON of a response: of a POST if there is a body. */
export async function json(path, options) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch (error) {
    throw failure(error, options?.signal);
  }
}

/** Yield the JSON of each server-sent event of a POST; it must end with `[DONE]`. */
export async function* events(path, body, signal) {
  const response = await send(path, { body: { ...body, stream: true }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data: "));
        if (!data.length) continue; // a keep-alive comment
        const text = data.map((line) => line.slice(6)).join("\n");
        if (text === "[DONE]") return;
        const event = JSON.parse(text);
        if (event.error) {
          const { message, code } = event.error;
          throw new ApiError(message, code === "closing" ? "lost" : "refused", { code });
        }
        yield event;
      }
    }
  } catch (error) {
    throw failure(error, signal);
  } finally {
    reader.cancel().catch(() => {});
  }
  throw failure(new Error("the stream has no end"), signal);
}

// The key

let asking = null;

/** Ask for the server's key, once for all requests that wait for it; then try again. */
async function askForKey(message, again) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key");
    const hadKey = sessionStorage.getItem(KEY) !== null;
    byId("key-note").textContent = hadKey
      ? "The server does not accept this key."
      : "This server asks for its API key. It stays in this tab until you close it.";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "yes" ? byId("key-field").value.trim() : "";
        if (given) sessionStorage.setItem(KEY, given);
        byId("key-field").value = "";
        asking = null;
        resolve(given !== "");
      },
      { once: true },
    );
  });
  if (await asking) return again();
  throw new ApiError(message ?? "This server asks for its API key.", "refused", { status: 401 });
}

// The connection

export const connection = {
  lost: false,
  listeners: [],
  /** Note that the server cannot be reached, and try until it can. */
  isLost() {
    if (this.lost) return;
    this.lost = true;
    this.show("Connection lost. Trying to reach the server again…");
    this.retry(FIRST_PAUSE);
  },
  /** Note that the server has answered. */
  isBack() {
    if (!this.lost) return;
    this.lost = false;
    clearTimeout(this.timer);
    byId("connection").hidden = true;
    say("Connected again.");
    this.listeners.forEach((listener) => listener());
  },
  show(text) {
    byId("connection-text").textContent = text;
    byId("connection").hidden = false;
  },
  retry(pause) {
    clearTimeout(this.timer);
    this.timer = setTimeout(async () => {
      if (!(await this.probe())) this.retry(Math.min(2 * pause, LONGEST_PAUSE));
    }, pause);
  },
  /** Try now; return whether the server answers. */
  async probe() {
    try {
      // A server that is shutting down answers 503.
      if (!(await fetch("/health")).ok) return false;
    } catch {
      return false;
    }
    this.isBack();
    return true;
  },
};
