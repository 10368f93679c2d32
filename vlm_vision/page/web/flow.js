// Tab "Data flow": the stages of the tower with their real shapes and numbers, and the taps that are usual.

import { load, about } from "./data.js";
import { el, explain } from "./dom.js";
import { percent, range, short } from "./numbers.js";
import { state, tower, towerImage } from "./state.js";
import { MapView } from "./view.js";

const MEANINGS = {
  pixels: "normalized",
  "patch embedding": "one linear map for each patch",
  "positions and prefix tokens": "positions added; CLS and registers in front",
  "norm before the blocks": "each token to one length",
  sum: "attention added to the input",
  attention: "tokens read each other",
  MLP: "each token alone",
  output: "MLP added",
  "final norm": "each token to one length",
  pooled: "one vector for the image",
};

export class FlowTab {
  constructor() {
    this.element = el("div", {});
  }

  build() {
    const { depth, taps } = tower();
    const { stages } = towerImage();
    const longest = range(stages.map((stage) => stage.length)).most;
    const line = (stage) => this.line(stage, longest);
    const blocks = [...Array(depth).keys()].map((block) => {
      const own = stages.filter((stage) => stage.block === block);
      const marks = taps.filter((tap) => tap.layer === block).map((tap) => el("span", { class: "chip" }, `tap: ${tap.name}`));
      const output = own[own.length - 1];
      return el("details", { class: "block" },
        el("summary", {}, el("strong", {}, `block ${block}`), el("span", { class: "shape" }, output.shape.join(" x ")), this.bar(output, longest), ...marks),
        this.table(own.map(line)));
    });
    const outside = (block) => this.table(stages.filter((stage) => stage.block === block).map(line));
    this.views = taps.map((tap) => ({
      tap,
      lengths: new MapView({ label: "length of each token", side: 210 }),
      colors: new MapView({ label: "first three principal components", side: 210 }),
    }));
    this.element.replaceChildren(
      explain("What this image becomes, stage by stage, measured in one forward pass. The bar is the mean length of a token: in a pre-norm tower it grows along the blocks. Open a block to see inside.",
        "Xiong et al. 2020", "https://arxiv.org/abs/2002.04745"),
      el("h3", {}, "Before the blocks"), outside(-1),
      el("h3", {}, `${depth} blocks`), ...blocks,
      el("h3", {}, "After the blocks"), outside(depth),
      el("h3", {}, "What the tap and the final norm change"),
      explain("Vision-language models read the second to last block without the norm (LLaVA), probes the last with it. Without the final norm, tokens differ in length and a few channels or tokens dominate: compare the scales of the maps, and how much tokens turn.",
        "Liu et al. 2023", "https://arxiv.org/abs/2304.08485"),
      el("div", { class: "taps" }, ...this.views.map(({ tap, lengths, colors }) =>
        el("section", { class: "card" }, el("h4", {}, tap.name), this.facts(tap), el("div", { class: "row" }, lengths.element, colors.element)))),
    );
  }

  facts(tap) {
    const rows = [
      ["mean length of a patch token", `${short(tap.length)} (spread ${short(tap.spread)})`],
      [`outliers, over ${about.outlier} medians long`, percent(tap.outliers)],
      ["mean cosine of two patches", short(tap.alike)],
      ["cosine with the normed last block", tap.turned === null ? "other grid" : short(tap.turned)],
    ];
    return el("table", { class: "facts" }, ...rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))));
  }

  table(lines) {
    const head = ["stage", "shape", "mean", "deviation", "least", "most", "mean length"];
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "stages" },
      el("table", { class: "stages" }, el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col", class: name === "mean length" ? "bars" : null }, name)))), el("tbody", {}, ...lines)));
  }

  line(stage, longest) {
    const name = el("th", { scope: "row" }, stage.name, el("small", {}, MEANINGS[stage.name] ?? ""));
    const numbers = [stage.mean, stage.std, stage.least, stage.most].map((value) => el("td", {}, short(value)));
    return el("tr", {}, name, el("td", { class: "shape" }, stage.shape.join(" x ")), ...numbers, el("td", { class: "bars" }, this.bar(stage, longest)));
  }

  bar(stage, longest) {
    const share = Math.max(0.5, (100 * stage.length) / longest);
    return el("span", { class: "amount" }, el("span", { style: { width: `${share}px` } }), short(stage.length));
  }

  async update() {
    const at = state.image;
    await Promise.all(this.views.map(async ({ tap, lengths, colors }) => {
      const grid = towerImage().grids[tap.layer];
      const values = await load(tap.lengths[at]);
      await lengths.values(values, grid, { ...range(values) });
      await colors.colors(await load(tap.components[at]), grid);
    }));
  }
}
