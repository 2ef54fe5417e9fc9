// Progressive enhancement of a page's charts: values on hover or by keyboard, zoom, other scales.
// All data is in `data-` attributes. Text is only set as text, never as HTML.
(() => {
  "use strict";
  const holder = document.querySelector("[data-axes]");
  // Axes of each run, at the lines of its log: step, and if known tokens and time (seconds).
  const runs = JSON.parse(holder.dataset.axes);
  const axes = ["step", "tokens", "time"].filter((axis) => runs.every((run) => run[axis]));
  const view = { axis: holder.dataset.axis, range: null };
  const longest = Math.max(...runs.map((run) => (run.time ? run.time.at(-1) : 0)));
  const [unit, seconds] =
    longest > 7200 ? ["hours", 3600] : longest > 120 ? ["minutes", 60] : ["seconds", 1];

  function make(tag, kind, text = "", parent = null) {
    const isDrawn = tag === "path";
    const element = isDrawn
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    element.setAttribute("class", kind);
    if (isDrawn) element.setAttribute("d", text);
    else element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function short(value) {
    for (const [size, letter] of [
      [1e9, "B"],
      [1e6, "M"],
      [1e3, "k"],
    ])
      if (Math.abs(value) >= size) return `${+(value / size).toPrecision(4)}${letter}`;
    return value && Math.abs(value) < 1e-3
      ? value.toExponential(+(value.toExponential(3).split("e")[0] % 1 !== 0))
      : `${+value.toPrecision(4)}`;
  }
  const exact = (y) =>
    Math.abs(y) >= 1e4 && Math.abs(y) < 1e15
      ? Math.round(y).toLocaleString("en")
      : `${+y.toPrecision(5)}`;
  const count = (x) =>
    view.axis === "time" ? exact(+x.toPrecision(4)) : Math.round(x).toLocaleString("en");
  const place = (x) =>
    ({ step: `step ${count(x)}`, tokens: `${count(x)} tokens`, time: `${count(x)} ${unit}` })[
      view.axis
    ];

  // Binary search: the index of the first of ascending values that is >= `value`.
  function firstFrom(values, value) {
    let [low, high] = [0, values.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // Convert x to another axis: linear interpolation between log lines, extrapolation after.
  function convert(run, from, to, x) {
    const [known, wanted] = [runs[run][from], runs[run][to]];
    const index = Math.min(Math.max(firstFrom(known, x), 1), known.length - 1);
    const share = (x - known[index - 1]) / (known[index] - known[index - 1]);
    const found = from === to ? x : wanted[index - 1] + share * (wanted[index] - wanted[index - 1]);
    return found / (to === "time" ? seconds : 1);
  }

  // Fit a scale, robust against outliers: the same computation as `fit_scale` in charts.py.
  function fit(given, wantsLog, fromZero) {
    let found = given.filter((value) => Math.abs(value) < 1e30).sort((a, b) => a - b);
    const log = wantsLog && found.length > 0 && found[0] > 1e-30;
    if (log) found = found.map(Math.log);
    if (!found.length) found = [0, 1];
    const at = (share) => found[Math.min(found.length - 1, Math.floor(share * found.length))];
    const reach = 3 * (at(0.75) - at(0.25));
    const tail = Math.floor(found.length / 20);
    let low = Math.max(found[0], Math.min(at(0.25) - reach, found[tail]));
    const high = Math.min(found.at(-1), Math.max(at(0.75) + reach, found.at(-1 - tail)));
    if (fromZero && !log) low = Math.min(low, 0);
    const margin = 0.04 * (high - low) || 0.1 * Math.abs(high) || 0.5;
    const ends = [low === 0 && !log ? 0 : low - margin, high + margin];
    return log ? scaleOf(...ends.map(Math.exp), true) : scaleOf(...ends);
  }

  function scaleOf(low, high, log = false) {
    const of = log
      ? (value) => (value > 0 ? Math.log(value / low) / Math.log(high / low) : -1)
      : (value) => (value - low) / (high - low);
    return { low, high, log, of };
  }

  // Round values between the ends of a scale, at most about `wanted`.
  function ticks({ low, high, log, of }, wanted = 6) {
    const inside = (values) =>
      values.filter((value) => of(value) >= -1e-9 && of(value) <= 1 + 1e-9);
    if (log && high / low > 20) {
      const first = Math.floor(Math.log10(low));
      const powers = Array.from(
        { length: Math.ceil(Math.log10(high)) - first + 1 },
        (_, i) => 10 ** (first + i),
      );
      let found = [];
      for (const digits of [[1, 2, 5], [1, 3], [1]]) {
        found = inside(powers.flatMap((power) => digits.map((digit) => digit * power)));
        if (found.length <= wanted + 2) return found;
      }
      return found.filter((_, i) => i % Math.ceil(found.length / wanted) === 0);
    }
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5].find((digit) => digit * power >= rough) || 10);
    const first = Math.ceil(low / step);
    return inside(
      Array.from(
        { length: Math.max(0, Math.floor(high / step) - first + 1) },
        (_, i) => (first + i) * step,
      ),
    );
  }

  class Chart {
    constructor(figure) {
      // axis, log, zero, resumed, curves: each with name, color, run, kind, x and y
      Object.assign(this, JSON.parse(figure.dataset.chart));
      this.figure = figure;
      this.plot = figure.querySelector(".plot");
      this.svg = figure.querySelector("svg");
      this.tip = make("div", "tip", "", this.plot);
      this.tip.setAttribute("aria-live", "polite");
      this.tip.hidden = true;
      this.button = make("button", "", "log", figure.querySelector("h3"));
      this.button.type = "button";
      this.button.title = "logarithmic or linear";
      this.button.addEventListener("click", () => {
        this.log = !this.log;
        this.draw();
      });
      this.plot.tabIndex = 0;
      this.plot.setAttribute("role", "group");
      this.plot.setAttribute(
        "aria-label",
        `${this.svg.getAttribute("aria-label")}; arrow keys read values, + and - zoom, Escape resets`,
      );
      this.from = this.at = null;
      this.listen();
    }

    // Convert the curves to the page's x-axis; select the points in view.
    arrange() {
      const points = this.curves.map((curve) => ({
        ...curve,
        x: curve.x.map((x) => convert(curve.run, this.axis, view.axis, x)),
      }));
      const ends = points.filter(({ x }) => x.length).map(({ x }) => [x[0], x.at(-1)]);
      const [first, last] = [
        Math.min(...ends.map(([a]) => a)),
        Math.max(...ends.map(([, b]) => b)),
      ];
      this.full = last > first ? [first > last / 2 ? first : 0, last] : [first - 0.5, first + 0.5];
      this.range = view.range || this.full;
      const [low, high] = this.range;
      this.shown = points.map((curve) => {
        const part = [Math.max(0, firstFrom(curve.x, low) - 1), firstFrom(curve.x, high) + 1];
        const [x, y] = [curve.x.slice(...part), curve.y.slice(...part)];
        const read = [...x.keys()].filter((i) => y[i] !== null && x[i] >= low && x[i] <= high);
        return { ...curve, x, y, readX: read.map((i) => x[i]), readY: read.map((i) => y[i]) };
      });
    }

    draw() {
      this.arrange();
      const values = this.shown
        .filter(({ kind }) => kind !== "median")
        .flatMap(({ y }) => y.filter((each) => each !== null));
      this.across = scaleOf(...this.range);
      this.up = fit(values, this.log, this.zero);
      this.button.setAttribute("aria-pressed", this.up.log);
      const [rows, columns] = [ticks(this.up), ticks(this.across, 5)];
      this.svg.replaceChildren(
        ...rows.map((y) => make("path", "grid", `M0 ${this.toY(y)}H1000`)),
        ...this.resumed.map((x) =>
          make("path", "mark", `M${this.toX(convert(0, this.axis, view.axis, x))} 0V1000`),
        ),
        ...this.shown.flatMap((curve) => this.pathsOf(curve)),
      );
      this.cursor = make("path", "cursor", "", this.svg);
      this.area = make("path", "area", "", this.svg);
      for (const label of this.plot.querySelectorAll("span")) label.remove();
      for (const y of rows)
        make("span", "y", short(y), this.plot).style.bottom = `${100 * this.up.of(y)}%`;
      for (const x of columns) {
        if (view.axis !== "time" && x % 1) continue;
        const text = view.axis === "step" ? x.toLocaleString("en") : short(x);
        make("span", "x", text, this.plot).style.left = `${100 * this.across.of(x)}%`;
      }
      this.figure.querySelector(".x-name").textContent = view.axis === "time" ? unit : view.axis;
      this.describe(values.filter((y) => this.up.of(y) < 0 || this.up.of(y) > 1).length);
      this.hide();
    }

    describe(outside) {
      const legend = this.figure.querySelector(".legend");
      for (const note of legend.querySelectorAll(".note")) note.remove();
      if (outside)
        make(
          "span",
          "note",
          `${outside.toLocaleString("en")} far-out point${outside === 1 ? " is" : "s are"} not shown`,
          legend,
        );
      if (this.up.log) make("span", "note", "logarithmic", legend);
    }

    toX(x) {
      return (1000 * this.across.of(x)).toFixed(1);
    }
    toY(y) {
      return (1000 * (1 - Math.max(-1, Math.min(2, this.up.of(y))))).toFixed(1);
    }

    pathsOf({ x, y, color, kind }) {
      let [line, dots, pen] = ["", "", "M"];
      y.forEach((value, i) => {
        if (value !== null) line += `${pen}${this.toX(x[i])} ${this.toY(value)}`;
        if (value !== null) dots += `M${this.toX(x[i])} ${this.toY(value)}h0`;
        pen = value === null ? "M" : "L";
      });
      const drawn = [make("path", `line c${color}${kind === "faint" ? " faint" : ""}`, line)];
      return kind === "dots" ? [...drawn, make("path", `dot c${color}`, dots)] : drawn;
    }

    // Show the values nearest to x: a vertical line, a dot on each curve, and a tooltip.
    show(wanted) {
      const near = (curve, x) => {
        const after = firstFrom(curve.readX, x);
        return after > 0 &&
          (after === curve.readX.length || x - curve.readX[after - 1] <= curve.readX[after] - x)
          ? after - 1
          : after;
      };
      const read = this.shown.filter(({ readX }) => readX.length);
      if (!read.length) return;
      this.at = read
        .map((curve) => curve.readX[near(curve, wanted)])
        .reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
      this.svg.querySelectorAll(".here").forEach((dot) => dot.remove());
      this.cursor.setAttribute("d", `M${this.toX(this.at)} 0V1000`);
      this.tip.replaceChildren(make("b", "", place(this.at)));
      for (const curve of read) {
        const index = near(curve, this.at);
        const [x, y] = [curve.readX[index], curve.readY[index]];
        make("path", `dot here c${curve.color}`, `M${this.toX(x)} ${this.toY(y)}h0`, this.svg);
        const line = make("p", "", "", this.tip);
        make("i", `c${curve.color}${curve.kind === "faint" ? " faint" : ""}`, "", line);
        line.append(`${curve.name}: ${exact(y)}`);
        if (place(x) !== place(this.at)) make("small", "", ` at ${place(x)}`, line);
      }
      this.tip.classList.toggle("left", this.across.of(this.at) > 0.5);
      this.tip.hidden = false;
      view.chart = this;
    }

    hide() {
      this.tip.hidden = true;
      this.cursor.setAttribute("d", "");
      this.area.setAttribute("d", "");
      this.svg.querySelectorAll(".here").forEach((dot) => dot.remove());
    }

    xOf(event) {
      const box = this.svg.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      return this.range[0] + share * (this.range[1] - this.range[0]);
    }

    // Scale the range by `factor`, around the selected value if it is in view.
    zoomBy(factor) {
      const [low, high] = this.range;
      const isInView = this.at !== null && this.at >= low && this.at <= high;
      const middle = isInView ? this.at : (low + high) / 2;
      const width = Math.min(factor * (high - low), this.full[1] - this.full[0]);
      const start = Math.min(Math.max(this.full[0], middle - width / 2), this.full[1] - width);
      zoom([start, start + width], this);
    }

    // Select the next (1) or the previous (-1) point of any curve.
    step(direction) {
      const all = [...new Set(this.shown.flatMap(({ readX }) => readX))].sort((a, b) => a - b);
      const index =
        this.at === null
          ? direction > 0
            ? 0
            : all.length - 1
          : firstFrom(all, this.at) + direction;
      if (all.length) this.show(all[Math.min(all.length - 1, Math.max(0, index))]);
    }

    listen() {
      const on = (name, react) => this.plot.addEventListener(name, react);
      on("pointerdown", (event) => {
        if (event.button) return;
        if (event.pointerType === "mouse") {
          this.from = this.xOf(event);
          this.plot.setPointerCapture(event.pointerId);
        }
        this.show(this.xOf(event));
      });
      on("pointermove", (event) => {
        const x = this.xOf(event);
        this.show(x);
        if (this.from !== null)
          this.area.setAttribute(
            "d",
            `M${this.toX(this.from)} 0H${this.toX(x)}V1000H${this.toX(this.from)}Z`,
          );
      });
      on("pointerup", (event) => {
        const ends = [this.from, this.xOf(event)].sort((a, b) => a - b);
        const isDrag =
          this.from !== null && ends[1] - ends[0] > 0.01 * (this.range[1] - this.range[0]);
        this.from = null;
        if (isDrag) zoom(ends, this);
      });
      on("pointercancel", () => {
        this.from = null;
        this.hide();
      });
      on("pointerleave", (event) => {
        if (event.pointerType === "mouse") this.hide();
      });
      on("blur", () => this.hide());
      on("dblclick", () => zoom(null));
      on("keydown", (event) => {
        const keys = {
          ArrowLeft: () => this.step(-1),
          ArrowRight: () => this.step(1),
          Home: () => this.show(this.range[0]),
          End: () => this.show(this.range[1]),
          Escape: () => {
            this.from = null;
            zoom(null);
          },
          "+": () => this.zoomBy(0.5),
          "-": () => this.zoomBy(2),
        };
        if (!Object.hasOwn(keys, event.key) || event.ctrlKey || event.metaKey || event.altKey)
          return;
        event.preventDefault();
        keys[event.key]();
      });
    }
  }

  // Zoom all charts to the same range of x; null resets.
  function zoom(range, chart = null) {
    // Zoom is limited to 1/1000 of the full range, as curves have about a thousand points.
    if (range && range[1] - range[0] < 1e-3 * (chart.full[1] - chart.full[0])) return;
    const isAll = range && range[0] <= chart.full[0] && range[1] >= chart.full[1];
    view.range = isAll ? null : range;
    update();
  }

  function update() {
    for (const chart of charts) chart.draw();
    for (const [axis, button] of Object.entries(buttons))
      button.setAttribute("aria-pressed", axis === view.axis);
    reset.hidden = view.range === null;
  }

  const tools = make("div", "tools");
  const buttons = {};
  for (const axis of axes) {
    buttons[axis] = make(
      "button",
      "",
      { step: "steps", tokens: "tokens", time: "time" }[axis],
      tools,
    );
    buttons[axis].addEventListener("click", () => {
      Object.assign(view, { axis, range: null });
      for (const chart of charts) chart.at = null;
      update();
    });
  }
  const nearer = make("button", "", "zoom in", tools);
  nearer.addEventListener("click", () => (view.chart || charts[0]).zoomBy(0.5));
  const reset = make("button", "", "reset zoom", tools);
  reset.addEventListener("click", () => zoom(null));
  make("small", "", "point at a chart for values, drag to zoom, double-click to reset", tools);
  for (const button of tools.querySelectorAll("button")) button.type = "button";
  const charts = [...document.querySelectorAll("[data-chart]")].map((figure) => new Chart(figure));
  if (!charts.length) return;
  holder.before(tools);
  holder.classList.add("live");
  update();
})();
