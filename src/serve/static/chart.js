// Line charts as SVG.

import { el, svg } from "./dom.js";

const LEFT = 52;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 34;

/**
 * Draw curves in a picture of so many pixels: `series` is a list of { name, color, points:
 * [[x, y], …], dots, pale }. Returns a figure whose readout follows the pointer.
 */
export function chart({ title, unit, xName, series, width, height }) {
  const all = series.flatMap(({ points }) => points).filter(([, y]) => y !== null);
  const caption = el("figcaption", {}, el("strong", {}, title), el("span", { class: "soft" }, unit));
  if (!all.length) return el("figure", { class: "chart" }, caption, el("p", { class: "soft" }, "Nothing is logged yet."));
  const x = scale(all.map(([at]) => at), LEFT, width - RIGHT, false);
  const y = scale(robust(all.map(([, value]) => value)), height - BOTTOM, TOP, true);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(title, unit, series) });
  for (const tick of y.ticks) {
    picture.append(
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y.at(tick), y2: y.at(tick) }),
      label(LEFT - 8, y.at(tick) + 4, "end", figure(tick)),
    );
  }
  for (const tick of x.ticks) picture.append(label(x.at(tick), height - BOTTOM + 18, "middle", figure(tick)));
  picture.append(label(width - RIGHT, height - 2, "end", xName));
  for (const each of series) picture.append(...curve(each, x, y));
  const mark = svg("line", { class: "mark", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
  picture.append(mark);
  const readout = el("p", { class: "readout soft", "aria-hidden": "true" });
  follow(picture, mark, readout, series, x, xName, width);
  return el("figure", { class: "chart" }, caption, picture, readout, legend(series));
}

function label(x, y, anchor, text) {
  const node = svg("text", { x, y, "text-anchor": anchor, class: "axis" });
  node.textContent = text;
  return node;
}

function curve({ points, color, dots, pale }, x, y) {
  let path = "";
  let isNew = true;
  for (const [at, value] of points) {
    if (value === null) {
      isNew = true;
      continue;
    }
    path += `${isNew ? "M" : "L"}${x.at(at).toFixed(1)} ${y.at(value).toFixed(1)}`;
    isNew = false;
  }
  const kind = `color-${color % 6} ${pale ? "pale" : ""}`;
  const marks = dots ? points.filter(([, value]) => value !== null) : [];
  return [
    svg("path", { d: path, class: `curve ${kind}` }),
    ...marks.map(([at, value]) => svg("circle", { cx: x.at(at), cy: y.at(value), r: 3, class: `dot ${kind}` })),
  ];
}

function legend(series) {
  return el(
    "ul",
    { class: "legend" },
    ...series.map(({ name, color, pale }) =>
      el("li", {}, el("span", { class: `swatch color-${color % 6} ${pale ? "pale" : ""}` }), name),
    ),
  );
}

function follow(picture, mark, readout, series, x, xName, width) {
  picture.addEventListener("pointermove", (event) => {
    const rect = picture.getBoundingClientRect();
    const at = x.back(((event.clientX - rect.left) / rect.width) * width);
    const found = series
      .map(({ name, points }) => ({ name, point: nearest(points, at) }))
      .filter(({ point }) => point);
    if (!found.length) return;
    const place = x.at(found[0].point[0]);
    mark.setAttribute("x1", place);
    mark.setAttribute("x2", place);
    mark.setAttribute("visibility", "visible");
    const values = found.map(({ name, point }) => `${name} ${figure(point[1])}`);
    readout.textContent = `${xName} ${figure(found[0].point[0])}: ${values.join(", ")}`;
  });
  picture.addEventListener("pointerleave", () => {
    mark.setAttribute("visibility", "hidden");
    readout.textContent = "";
  });
}

function nearest(points, at) {
  let best = null;
  for (const point of points) {
    if (point[1] === null) continue;
    if (!best || Math.abs(point[0] - at) < Math.abs(best[0] - at)) best = point;
  }
  return best;
}

/** Leave the highest twentieth out, if it is far above: the first steps do not flatten the rest. */
function robust(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const high = sorted[Math.floor(0.95 * (sorted.length - 1))];
  const low = sorted[0];
  const isFar = sorted.at(-1) - high > 1.5 * (high - low) && sorted.length > 20;
  return isFar ? sorted.filter((value) => value <= high) : sorted;
}

function scale(values, from, to, isPadded) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  const margin = isPadded ? 0.06 * (high - low) : 0;
  low -= margin;
  high += margin;
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const at = (value) => {
    const place = from + ((value - low) / (high - low)) * (to - from);
    return Math.max(Math.min(from, to), Math.min(Math.max(from, to), place));
  };
  return { at, ticks: ticks(low, high), back: (place) => low + ((place - from) / (to - from)) * (high - low) };
}

/** Return about five round values between two. */
function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Return a number as text, with at most four digits. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 10_000) return `${Number((value / 1000).toPrecision(4))}k`;
  return `${Number(value.toPrecision(4))}`;
}

function describe(title, unit, series) {
  const last = series.map(({ name, points }) => `${name}: ${figure(points.at(-1)?.[1])}`);
  return `${title}, ${unit}. Last values: ${last.join("; ")}.`;
}
