// How the model came to a token: the logit lens by layer, and the attention of each head.

import { json } from "./api.js";
import { byId, el, isPart, percent, visible } from "./dom.js";

let asked = 0;

/** Show how a model came to the token after `tokens[position]`. */
export async function inspect({ model, tokens, position }) {
  const dialog = byId("inspect");
  const content = byId("inspect-content");
  const number = ++asked;
  content.replaceChildren(el("p", { class: "soft" }, "Computing…"));
  if (!dialog.open) dialog.showModal();
  try {
    const body = { model, tokens: tokens.slice(0, position + 2), position };
    const lens = await json("/api/lens", { body });
    const attention = await json("/api/attention", { body });
    if (number !== asked) return;
    content.replaceChildren(...summary(lens, attention), ...lensTable(lens), ...attentionView(attention));
  } catch (error) {
    if (number === asked) content.replaceChildren(el("p", { class: "note" }, error.message));
  }
}

function summary(lens, attention) {
  const { target } = lens;
  const last = lens.layers.at(-1);
  const first = lens.layers.findIndex((each) => each.rank === 1);
  const since = first < 0 ? "It is the most likely token in no layer." : `It is the most likely token first ${layerName(first, true)}.`;
  const notes = [
    el(
      "p",
      {},
      "Token ",
      el("strong", {}, visible(target.token)),
      `: ${percent(last.probability)}, rank ${last.rank} of the model's vocabulary. ${since}`,
    ),
  ];
  if (attention.start) {
    notes.push(el("p", { class: "note" }, `Only the last ${attention.tokens.length} tokens fit into the model's positions.`));
  }
  return notes;
}

const layerName = (layer, isIn = false) => {
  if (layer === 0) return isIn ? "in the embeddings" : "embeddings";
  return isIn ? `after layer ${layer}` : `layer ${layer}`;
};

function lensTable({ layers, target }) {
  const rows = layers.map((layer) => {
    const cells = layer.top.map(({ token_id: id, token, probability }) => {
      const cell = el("td", { class: `lens ${id === target.token_id ? "own" : ""}` });
      cell.style.setProperty("--share", probability);
      cell.append(el("span", {}, visible(token)), el("small", {}, percent(probability)));
      return cell;
    });
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, layerName(layer.layer)),
      el("td", { class: "figure" }, `${percent(layer.probability)}`, el("small", {}, `rank ${layer.rank}`)),
      ...cells,
    );
  });
  const head = ["after", "this token", ...layers[0].top.map((_, index) => `${index + 1}.`)];
  return [
    el("h3", {}, "Logit lens"),
    el("p", { class: "soft" }, "What each layer would predict, if it were the last: its output goes through the final layer norm and the head."),
    el(
      "div",
      { class: "wide", tabIndex: 0, role: "region", "aria-label": "Logit lens" },
      el(
        "table",
        { class: "lens-table" },
        el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...rows),
      ),
    ),
  ];
}

function attentionView({ tokens, weights }) {
  const layers = weights.length;
  const heads = weights[0].length;
  const choose = (id, label, names) =>
    el("label", {}, label, el("select", { id }, ...names.map(([value, name]) => el("option", { value }, name))));
  const layer = choose("attention-layer", "Layer", weights.map((_, index) => [index, `${index + 1}`]));
  const head = choose("attention-head", "Head", [["mean", "mean of all"], ...weights[0].map((_, index) => [index, `${index + 1}`])]);
  const text = el("div", { class: "attended", tabIndex: 0, role: "region", "aria-label": "Tokens by attention" });
  const list = el("ol", { class: "choices" });
  const grid = el("div", { class: "heads", "aria-hidden": "true" });
  const selects = [layer, head].map((each) => each.querySelector("select"));
  const draw = () => {
    const [l, h] = selects.map((each) => each.value);
    const rows = weights[Number(l)];
    const row = h === "mean" ? rows[0].map((_, t) => rows.reduce((sum, each) => sum + each[t], 0) / heads) : rows[Number(h)];
    drawAttention(text, list, tokens, row);
    for (const cell of grid.children) {
      const isChosen = cell.dataset.layer === l && (h === "mean" || cell.dataset.head === h);
      cell.classList.toggle("chosen", isChosen);
    }
  };
  // How much each head attends to more than the first token and itself: where to look.
  weights.forEach((rows, l) =>
    rows.forEach((row, h) => {
      const cell = el("span", { data: { layer: String(l), head: String(h) }, title: `layer ${l + 1}, head ${h + 1}` });
      cell.style.setProperty("--share", Math.max(0, 1 - row[0] - (row.length > 1 ? row.at(-1) : 0)));
      cell.addEventListener("click", () => {
        [selects[0].value, selects[1].value] = [String(l), String(h)];
        draw();
      });
      grid.append(cell);
    }),
  );
  grid.style.setProperty("--heads", heads);
  selects[0].value = String(layers - 1);
  selects.forEach((each) => each.addEventListener("change", draw));
  draw();
  return [
    el("h3", {}, "Attention"),
    el("p", { class: "soft" }, "To which tokens the model attended when it predicted this one. In the grid, a row is a layer and a column a head; darker heads attend to more than the first and the last token."),
    el("div", { class: "attention-keys" }, layer, head, grid),
    text,
    list,
  ];
}

function drawAttention(text, list, tokens, row) {
  const highest = Math.max(...row);
  text.replaceChildren(
    ...tokens.map((token, index) => {
      const span = el("span", { class: "attended-token", title: percent(row[index]) }, isPart(token) ? "·" : token);
      span.style.setProperty("--share", highest ? row[index] / highest : 0);
      return span;
    }),
  );
  const order = row.map((_, index) => index).sort((a, b) => row[b] - row[a]).slice(0, 8);
  list.replaceChildren(
    ...order.map((index) => {
      const bar = el("span", { class: "bar" });
      bar.style.setProperty("--share", row[index]);
      const place = row.length - 1 - index;
      const where = place ? `${place} before the last` : "the last";
      return el(
        "li",
        {},
        el("span", { class: "choice-text" }, visible(tokens[index]), el("small", { class: "soft" }, ` ${where}`)),
        el("span", { class: "figure" }, percent(row[index])),
        bar,
      );
    }),
  );
}
