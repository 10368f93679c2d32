// Tab "Comparison": encoders on the same image.

import { about, load } from "./data.js";
import { choices, el, explain } from "./dom.js";
import { cosines, range, short } from "./numbers.js";
import { choose, inGrid, samePlace, state, towerImage } from "./state.js";
import { MapView } from "./view.js";

const towers = () => about.encoders.flatMap((encoder, e) => encoder.towers.map((tower, t) => ({
  name: encoder.towers.length > 1 ? `${encoder.name}, tower ${t} (${tower.name})` : encoder.name, depth: tower.depth, encoder: e, tower: t,
})));

export class ComparisonTab {
  constructor() {
    this.element = el("div", {});
    this.pair = [0, Math.min(1, towers().length - 1)];
  }

  build() {
    this.views = about.encoders.map((encoder, e) => ({
      colors: new MapView({ label: "principal components", side: 230 }),
      similar: new MapView({ label: "similarity to the chosen patch", url: encoder.images[state.image].towers[0].url, side: 230,
        choose: (at) => choose({ token: this.here(e, at) }) }),
    }));
    this.layers = new MapView({ label: "similarity of layers", side: 320 });
    this.chosen = el("div", {});
    const facts = [
      ["parameters", (one) => `${short(one.parameters / 1e6)} million`],
      ["operations an image", (one) => `${short(one.flops / 1e9)} billion`],
      ["patch tokens", (one) => String(one.images[state.image].grid[0] * one.images[state.image].grid[1])],
      ["grid", (one) => one.images[state.image].grid.join(" x ")],
      ["channels", (one) => String(one.width)],
      ["blocks", (one) => one.towers.map((tower) => tower.depth).join(" + ")],
      ["time of an image, here", (one) => `${short(one.milliseconds)} ms on ${one.device}`],
      ["variance in the three components", (one) => `${short(100 * one.shares.reduce((a, b) => a + b, 0))} %`],
    ];
    this.element.replaceChildren(
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "encoders" }, el("table", { class: "stages" },
        el("thead", {}, el("tr", {}, el("th", {}, ""), ...about.encoders.map((one) => el("th", { scope: "col" }, one.name)))),
        el("tbody", {}, ...facts.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), ...about.encoders.map((one) => el("td", {}, value(one)))))))),
      el("p", { class: "note" }, "The time is that of one forward pass on the machine that made the page, which may have had other work."),
      el("h3", {}, "The same patch in each encoder"),
      explain("Cosine of patch tokens with the one at the place that you click, and the first three principal components as red, green and blue. The components are of each encoder alone: their colors mean nothing between encoders, only what is separated from what.",
        "Oquab et al. 2023", "https://arxiv.org/abs/2304.07193"),
      el("div", { class: "taps" }, ...this.views.map(({ colors, similar }, e) =>
        el("section", { class: "card" }, el("h4", {}, about.encoders[e].name), el("div", { class: "row" }, similar.element, colors.element)))),
      el("h3", {}, "Similarity of layers (CKA)"),
      explain("Linear centered kernel alignment of patch tokens, averaged to 8 x 8 places an image: 1 where two layers hold the same geometry. Few images give high values; compare rows and columns, not single numbers.",
        "Kornblith et al. 2019", "https://arxiv.org/abs/1905.00414"),
      this.chosen, this.layers.element,
    );
  }

  /** The patch of the chosen encoder at the place of another encoder's patch. */
  here(e, at) {
    const { grid, towers } = about.encoders[e].images[state.image];
    return samePlace(inGrid(at, grid, towers[0].grid), towers[0], towerImage());
  }

  async update() {
    await Promise.all(this.views.map(async ({ colors, similar }, e) => {
      const shown = about.encoders[e].images[state.image];
      const there = shown.towers[0];
      const at = inGrid(samePlace(state.patch, towerImage(), there), there.grid, shown.grid);
      const tokens = await load(shown.tokens);
      const values = cosines(tokens, at, tokens, about.encoders[e].width);
      similar.chosen = at;
      await similar.values(values, shown.grid, { least: Math.min(0, range(values).least), most: 1 });
      await colors.colors(await load(shown.components), shown.grid);
    }));
    await this.drawLayers();
  }

  async drawLayers() {
    const all = towers();
    const names = all.map((one) => one.name);
    const pick = (place) => (i) => {
      this.pair[place] = i;
      this.drawLayers();
    };
    this.chosen.replaceChildren(choices("rows", names, this.pair[0], pick(0)), choices("columns", names, this.pair[1], pick(1)));
    const [one, other] = this.pair;
    const values = await load(about.cka[one][other]);
    const grid = [all[one].depth, all[other].depth];
    this.layers.caption.textContent = `layers of ${names[one]} from top to bottom, of ${names[other]} from left to right`;
    await this.layers.values(values, grid, { least: range(values).least, most: Math.max(range(values).most, range(values).least + 1e-6) });
  }
}
