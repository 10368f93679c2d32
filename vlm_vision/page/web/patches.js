// Tab "Patches": how the image is cut, what one patch is, and which positions the tower takes to be close.

import { paint } from "./color.js";
import { about, load } from "./data.js";
import { el, explain, picture } from "./dom.js";
import { cosines, quantile, range, short } from "./numbers.js";
import { choose, encoder, encoderImage, inGrid, state, tower, towerImage } from "./state.js";
import { MapView } from "./view.js";

export class PatchesTab {
  constructor() {
    this.element = el("div", {});
  }

  build() {
    const shown = towerImage();
    const { positions, table, position } = tower();
    const original = about.images[state.image];
    this.original = el("canvas", { class: "map", role: "img", "aria-label": "the original image, with the part that the tower sees" });
    this.cut = new MapView({ label: `what the tower sees: ${shown.grid[0]} x ${shown.grid[1]} patches`, url: shown.url, choose: (token) => choose({ token }), legend: false });
    this.cut.lines = true;
    this.enlarged = el("canvas", { class: "map pixelated", role: "img", "aria-label": "the chosen patch, enlarged" });
    this.about = el("p", { class: "note" });
    this.strips = [this.strip("patch embedding"), this.strip("token after all blocks")];
    this.maps = positions.map(({ grid }) => ({
      grid,
      view: new MapView({ label: `${grid[0]} x ${grid[1]}${String(grid) === String(table) ? ", the table's own grid" : ""}`, side: 200,
        choose: (at) => choose({ token: inGrid(at, grid, towerImage().grid) }) }),
    }));
    const kind = { learned: "a learned table", sincos2d: "a fixed sine and cosine table", axes: "learned tables of rows and of columns", rotary: "rotary positions" }[position];
    this.element.replaceChildren(
      explain("The tower resizes and crops the image, cuts it into patches and turns each into one token by a linear map. Click a patch.",
        "Dosovitskiy et al. 2020", "https://arxiv.org/abs/2010.11929"),
      el("div", { class: "split" },
        el("figure", { class: "view" }, this.original, el("figcaption", {}, `original, ${original.size[0]} x ${original.size[1]} pixels. ${this.place(shown)}`)),
        this.cut.element,
        el("figure", { class: "view narrow" }, this.enlarged, el("figcaption", {}, this.about))),
      el("h3", {}, "What the patch becomes"), ...this.strips.map((one) => one.element),
      el("h3", {}, "Similarity of positions"),
      explain(kind
        ? `Positions are ${kind}. Each map shows how similar the position of the chosen patch is to all others (cosine, of rotary positions the mean cosine of the angles between them); on other grids than the table's own it is resized by this checkpoint's rule.`
        : "This tower has no positions outside of its windows.", null),
      el("div", { class: "row" }, ...this.maps.map(({ view }) => view.element)),
    );
  }

  strip(name) {
    const canvas = el("canvas", { class: "strip", height: 1, role: "img", "aria-label": `${name}, one cell a channel` });
    const text = el("figcaption", {});
    return { name, canvas, text, element: el("figure", { class: "view wide" }, text, canvas) };
  }

  place({ place, size }) {
    if (!place) return "Its place depends on its content and is not measured.";
    const [left, top, right, bottom] = place.padding;
    const padded = left + top + right + bottom > 0 ? ` Padding, gray here: ${left}, ${top}, ${right} and ${bottom} pixels at the left, top, right and bottom.` : "";
    const [width, height] = about.images[state.image].size;
    const [x0, y0, x1, y1] = place.box;
    const slack = 0.01 * Math.max(width, height);
    const cropped = x0 > slack || y0 > slack || x1 < width - slack || y1 < height - slack;
    const rest = cropped ? "The tower sees the part inside the frame; the dark part is cropped." : "The tower sees all of it.";
    return `${rest} It becomes ${size[1]} x ${size[0]} pixels.${padded}`;
  }

  async update() {
    const shown = towerImage();
    const at = state.patch;
    this.cut.chosen = at;
    await Promise.all([this.drawOriginal(shown, at), this.cut.draw(shown.grid, null), this.enlarge(shown, at), this.drawStrips(shown, at)]);
    await Promise.all(this.maps.map(({ grid, view }, i) => this.drawPositions(view, grid, i, at)));
  }

  async drawOriginal(shown, at) {
    const { url, size } = about.images[state.image];
    const image = await picture(url);
    const box = shown.place ? shown.place.box : [0, 0, ...size];
    const [left, top] = [Math.min(0, box[0]), Math.min(0, box[1])]; // padding lies outside of the original
    const [wideAll, tallAll] = [Math.max(size[0], box[2]) - left, Math.max(size[1], box[3]) - top];
    const scale = 420 / Math.max(wideAll, tallAll);
    Object.assign(this.original, { width: Math.round(wideAll * scale), height: Math.round(tallAll * scale) });
    const context = this.original.getContext("2d");
    const { width, height } = this.original;
    context.fillStyle = "#777777";
    context.fillRect(0, 0, width, height);
    context.drawImage(image, -left * scale, -top * scale, size[0] * scale, size[1] * scale);
    if (!shown.place) return;
    const [x0, y0, x1, y1] = box.map((edge, i) => (edge - (i % 2 ? top : left)) * scale);
    context.fillStyle = "rgba(0, 0, 0, 0.55)";
    context.beginPath();
    context.rect(0, 0, width, height);
    context.rect(x0, y0, x1 - x0, y1 - y0);
    context.fill("evenodd");
    const [rows, columns] = shown.grid;
    const [wide, tall] = [(x1 - x0) * (tower().patch / shown.size[1]), (y1 - y0) * (tower().patch / shown.size[0])];
    context.strokeStyle = "rgba(255, 255, 255, 0.5)";
    context.beginPath();
    for (let row = 0; row <= rows; row++) context.moveTo(x0, y0 + row * tall), context.lineTo(x0 + columns * wide, y0 + row * tall);
    for (let i = 0; i <= columns; i++) context.moveTo(x0 + i * wide, y0), context.lineTo(x0 + i * wide, y0 + rows * tall);
    context.stroke();
    const [x, y] = [x0 + (at % columns) * wide, y0 + Math.floor(at / columns) * tall];
    for (const [style, thick] of [["#000", 5], ["#fff", 2.5]]) {
      Object.assign(context, { strokeStyle: style, lineWidth: thick });
      context.strokeRect(x, y, wide, tall);
    }
  }

  async enlarge(shown, at) {
    const side = tower().patch;
    const columns = shown.grid[1];
    const [row, column] = [Math.floor(at / columns), at % columns];
    Object.assign(this.enlarged, { width: side, height: side });
    const context = this.enlarged.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, side, side);
    context.drawImage(await picture(shown.url), -column * side, -row * side);
    const pixels = context.getImageData(0, 0, side, side).data;
    const means = [0, 1, 2].map((c) => Math.round(pixels.reduce((sum, value, i) => (i % 4 === c ? sum + value : sum), 0) / side ** 2));
    this.about.textContent = `patch ${at}, row ${row}, column ${column}: ${side} x ${side} pixels, ${3 * side * side} numbers. Mean color: red ${means[0]}, green ${means[1]}, blue ${means[2]} of 255.`;
  }

  async drawStrips(shown, at) {
    const sources = [[await load(shown.embedding), tower().width, at]];
    const final = encoderImage();
    sources.push([await load(final.tokens), encoder().width, inGrid(at, shown.grid, final.grid)]);
    sources.forEach(([rows, width, index], i) => {
      const values = rows.subarray(index * width, (index + 1) * width);
      const bound = Math.max(1e-6, quantile(values.map(Math.abs), 0.98));
      const { canvas, text, name } = this.strips[i];
      canvas.width = width;
      paint(canvas.getContext("2d"), values, [1, width], { least: -bound, most: bound, scale: "signed" });
      text.textContent = `${name}: ${width} numbers, from ${short(range(values).least)} to ${short(range(values).most)}; blue is below zero, orange above, full color at ${short(bound)}`;
    });
  }

  async drawPositions(view, grid, i, at) {
    const { rows } = tower().positions[i];
    const values = await load(rows);
    const chosen = inGrid(at, towerImage().grid, grid);
    const similar = cosines(values, chosen, values, rows.shape[1]);
    view.chosen = chosen;
    const { least, most } = range(similar);
    await view.values(similar, grid, { least, most });
  }
}
