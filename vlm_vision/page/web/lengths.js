// Tab "Norms": lengths of tokens by layer, and the few that are much longer than the rest.

import { about, load } from "./data.js";
import { el, explain, slider } from "./dom.js";
import { percent, quantile, range, short } from "./numbers.js";
import { choose, state, tower, towerImage } from "./state.js";
import { MapView } from "./view.js";

/** Lengths of the tokens of each layer: [{prefix, patches, grid}]. */
export async function lengthsByLayer(shown, described) {
  const values = await load(shown.lengths);
  const prefix = described.prefix.length;
  let start = 0;
  return shown.grids.map((grid) => {
    const end = start + prefix + grid[0] * grid[1];
    const one = { prefix: values.subarray(start, start + prefix), patches: values.subarray(start + prefix, end), grid };
    start = end;
    return one;
  });
}

export class NormsTab {
  constructor() {
    this.element = el("div", {});
    this.layer = null;
  }

  build() {
    const { depth } = tower();
    this.layer = Math.min(this.layer ?? depth - 1, depth - 1);
    this.view = new MapView({ label: "length of each patch token", url: towerImage().url, choose: (token) => choose({ token }) });
    this.chart = el("canvas", { class: "chart", width: 640, height: 300, role: "img", "aria-label": "lengths of patch tokens by layer" });
    this.sentence = el("p", { class: "reading", "aria-live": "polite" });
    this.element.replaceChildren(
      explain(`Length (L2 norm) of each token at the output of a block. Large towers trained without registers park information in a few patches of plain background: they are many times longer. Framed: patches over ${about.outlier} times the median.`,
        "Darcet et al. 2023", "https://arxiv.org/abs/2309.16588"),
      slider("layer", depth - 1, this.layer, (layer) => {
        this.layer = layer;
        this.update();
      }),
      el("div", { class: "split" }, this.view.element, el("figure", { class: "view wide" }, this.chart,
        el("figcaption", {}, "by layer: solid, the median patch; band, from the 10th to the 90th percentile; dashed, the longest patch; dots, CLS and registers"))),
      this.sentence,
    );
  }

  async update() {
    const layers = await lengthsByLayer(towerImage(), tower());
    const { patches, prefix, grid } = layers[this.layer];
    const median = quantile(patches, 0.5);
    const outliers = [...patches.keys()].filter((i) => patches[i] > about.outlier * median);
    this.view.marks = outliers.map((patch) => ({ patch, color: "#ffb000" }));
    this.view.chosen = null;
    await this.view.values(patches, grid, range(patches));
    const names = tower().prefix.map((name, i) => `${name.toUpperCase()} ${short(prefix[i])}`);
    this.sentence.textContent = `After block ${this.layer} the median patch has length ${short(median)}, the longest ${short(range(patches).most)}; ${
      outliers.length ? `${outliers.length} outliers (${percent(outliers.length / patches.length)}): patches ${outliers.slice(0, 12).join(", ")}` : "no outliers"}${names.length ? `. ${names.join(", ")}` : ""}.`;
    this.draw(layers);
  }

  draw(layers) {
    const context = this.chart.getContext("2d");
    const { width, height } = this.chart;
    const style = getComputedStyle(document.body);
    const [ink, accent, dim] = ["--ink", "--accent", "--dim"].map((name) => style.getPropertyValue(name));
    const most = Math.max(...layers.flatMap(({ prefix, patches }) => [...prefix, range(patches).most]), 1e-9);
    const x = (i) => 50 + ((width - 70) * i) / Math.max(1, layers.length - 1);
    const y = (value) => height - 34 - ((height - 54) * value) / most;
    context.clearRect(0, 0, width, height);
    context.font = "15px system-ui, sans-serif";
    context.fillStyle = ink;
    for (const share of [0, 0.5, 1]) context.fillText(short(most * share), 2, y(most * share) + 5);
    layers.forEach((_, i) => (layers.length < 16 || i % 4 === 0) && context.fillText(String(i), x(i) - 5, height - 10));
    const line = (share, dash, color) => {
      context.setLineDash(dash);
      context.strokeStyle = color;
      context.lineWidth = 2.5;
      context.beginPath();
      layers.forEach(({ patches }, i) => context.lineTo(x(i), y(quantile(patches, share))));
      context.stroke();
      context.setLineDash([]);
    };
    context.fillStyle = dim;
    context.beginPath();
    layers.forEach(({ patches }, i) => context.lineTo(x(i), y(quantile(patches, 0.9))));
    [...layers].reverse().forEach(({ patches }, i) => context.lineTo(x(layers.length - 1 - i), y(quantile(patches, 0.1))));
    context.fill();
    line(0.5, [], accent);
    line(1, [7, 5], ink);
    context.fillStyle = "#dc7a1a";
    layers.forEach(({ prefix }, i) => prefix.forEach((value) => {
      context.beginPath();
      context.arc(x(i), y(value), 4, 0, 7);
      context.fill();
    }));
    context.strokeStyle = ink;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x(this.layer), 10);
    context.lineTo(x(this.layer), height - 30);
    context.stroke();
  }
}
