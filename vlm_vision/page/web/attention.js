// Tab "Attention": where a token takes its values from, in every head.

import { paint } from "./color.js";
import { about, loadLayer } from "./data.js";
import { announce, choices, el, explain } from "./dom.js";
import { attend, percent, range } from "./numbers.js";
import { choose, inGrid, layerNow, row, state, tower, towerImage } from "./state.js";
import { MapView } from "./view.js";

/** Weights of the chosen token in one head of a layer. */
export function weightsOf(layer, head) {
  const token = typeof state.token === "number" ? inGrid(state.token, towerImage().grid, layer.grid) : state.token;
  return attend(layer, head, row(tower(), layer, token));
}

const tokenName = () => (typeof state.token === "number" ? `patch ${state.token}` : state.token.toUpperCase());

export class AttentionTab {
  constructor() {
    this.element = el("div", {});
  }

  /** Everything again, for another encoder, image or tower. */
  build() {
    const { heads, prefix, layers, depth } = tower();
    this.large = new MapView({ label: "attention of the chosen head", url: towerImage().url, choose: (token) => choose({ token }) });
    this.heads = [...Array(heads).keys()].map((head) => this.small(head));
    const shown = about.served ? [...Array(depth).keys()] : layers;
    this.sentence = el("p", { class: "reading", "aria-live": "polite" });
    this.layerRow = el("div", {});
    this.tokenRow = el("div", {});
    this.thumbs = shown.map((layer) => ({
      layer,
      canvases: [...Array(heads).keys()].map((head) =>
        el("button", { type: "button", class: "thumb", "aria-label": `layer ${layer}, head ${head}`, onclick: () => choose({ layer, head }) },
          el("canvas", { width: 48, height: 48 })),
      ),
    }));
    this.table = el("div", { class: "thumbs" }, ...this.thumbs.map(({ layer, canvases }) =>
      el("div", { class: "thumbrow" }, el("span", { class: "label" }, `layer ${layer}`), ...canvases)));
    this.shown = shown;
    const others = about.served ? "" : " Other layers: make the page with --layers, or with --serve.";
    this.element.replaceChildren(
      explain(
        "Softmax weights of one token, as its block computes them from queries and keys: bright patches are those that the token reads. "
          + "They are not a rollout over layers. Click a patch, or move with the arrow keys.",
        "Dosovitskiy et al. 2020", "https://arxiv.org/abs/2010.11929",
      ),
      tower().windows ? el("p", { class: "note" }, "Blocks of this tower attend within windows: patches outside of the token's window have no weight.") : "",
      this.tokenRow, this.layerRow,
      el("div", { class: "split" }, this.large.element, el("div", {}, el("h3", {}, "All heads of the layer, each up to its largest weight"),
        el("div", { class: "heads" }, ...this.heads.map((head) => head.button)))),
      this.sentence,
      el("h3", {}, "All layers and heads of the page"),
      el("p", { class: "note" }, `Each small map has its own scale, from 0 to its largest weight.${others}`),
      this.table,
    );
    if (!prefix.length) this.tokenRow.append(el("p", { class: "note" }, this.noPrefix()));
  }

  noPrefix() {
    const { pool } = tower();
    const pooled = pool === "map" || pool === "query" ? "a pooling head with a query of its own" : pool === "mean" ? "the mean of the patches" : "no token";
    return `This tower has no CLS token and no registers; its pooled vector comes from ${pooled}.`;
  }

  small(head) {
    const canvas = el("canvas", { width: 112, height: 112 });
    const text = el("span", {});
    const button = el("button", { type: "button", class: "head", "aria-label": `head ${head}`, onclick: () => choose({ head }) }, canvas, text);
    return { canvas, text, button };
  }

  /** Draw what is chosen; Promise of being done. */
  async update() {
    const { prefix } = tower();
    const patches = typeof state.token === "number";
    this.tokenRow.replaceChildren(
      prefix.length
        ? choices("token", [...prefix.map((name) => name.toUpperCase()), "patch"], patches ? prefix.length : prefix.indexOf(state.token),
          (i) => choose({ token: prefix[i] ?? state.patch }))
        : el("p", { class: "note" }, this.noPrefix()),
    );
    this.layerRow.replaceChildren(choices("layer", this.shown, this.shown.indexOf(state.layer), (i) => choose({ layer: this.shown[i] })));
    const layer = await layerNow();
    const rows = this.heads.map((_, head) => weightsOf(layer, head));
    rows.forEach((weights, head) => this.drawHead(head, weights, layer.grid));
    const now = rows[state.head];
    const { most } = range(now.patches);
    this.large.chosen = patches ? inGrid(state.token, towerImage().grid, layer.grid) : null;
    this.large.caption.textContent = `layer ${state.layer}, head ${state.head}: ${tokenName()} attends to these patches`;
    await this.large.values(now.patches, layer.grid, { least: 0, most, unit: percent });
    this.describe(now, most);
    performance.mark("heads drawn");
    await this.drawThumbs();
  }

  drawHead(head, weights, grid) {
    const { canvas, text, button } = this.heads[head];
    const { most } = range(weights.patches);
    fit(canvas, grid, 112);
    paint(canvas.getContext("2d"), weights.patches, grid, { least: 0, most });
    text.textContent = `head ${head}, ${percent(most)}`;
    button.setAttribute("aria-pressed", String(head === state.head));
  }

  describe(now, most) {
    const { prefix } = tower();
    const parts = prefix.map((name, i) => `${percent(now.prefix[i])} to ${name.toUpperCase()}`);
    if (now.padding > 0) parts.push(`${percent(now.padding)} to padding`);
    const best = now.patches.indexOf(most);
    const rest = parts.length ? `, ${parts.join(", ")}` : "";
    this.sentence.textContent = `${tokenName()} gives ${percent(now.patches.reduce((a, b) => a + b, 0))} of its attention to patches${rest}; most, ${percent(most)}, to patch ${best}.`;
    announce(this.sentence.textContent);
  }

  /** Thumbnails of the layers that are there; a server computes none for them. */
  async drawThumbs() {
    const held = towerImage().attention;
    const asked = JSON.stringify([state.encoder, state.tower, state.image, state.token]);
    for (const { layer, canvases } of this.thumbs) {
      for (const [head, button] of canvases.entries()) {
        button.setAttribute("aria-pressed", String(layer === state.layer && head === state.head));
      }
      if (!held[layer]) continue;
      const loaded = await loadLayer(state.encoder, state.image, state.tower, layer);
      if (asked !== JSON.stringify([state.encoder, state.tower, state.image, state.token])) return;
      canvases.forEach((button, head) => {
        const { patches } = weightsOf(loaded, head);
        fit(button.firstChild, loaded.grid, 48);
        paint(button.firstChild.getContext("2d"), patches, loaded.grid, { least: 0, most: range(patches).most });
      });
    }
    performance.mark("thumbnails drawn");
  }
}

/** Give a canvas the shape of a grid. */
export function fit(canvas, [rows, columns], side) {
  canvas.width = Math.max(8, Math.round(columns >= rows ? side : (side * columns) / rows));
  canvas.height = Math.max(8, Math.round(columns >= rows ? (side * rows) / columns : side));
}
