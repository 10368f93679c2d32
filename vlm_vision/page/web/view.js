// A map over the patches of an image: drawn on a canvas, with a legend; patches are chosen by click and by keys.

import { gradient, paint, paintColors } from "./color.js";
import { el, picture } from "./dom.js";
import { short } from "./numbers.js";

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class MapView {
  /**
   * @param {object} options
   *   label: what the map shows, for screen readers and as its caption;
   *   url: image below the map, or null; side: pixels of the canvas's longer side;
   *   choose: called with a patch's number, or null for a map that is not clickable.
   */
  constructor({ label, url = null, side = 448, choose = null, legend = true }) {
    Object.assign(this, { url, side, choose, label, grid: [1, 1], chosen: null, marks: [], layer: null, lines: false });
    this.canvas = el("canvas", { class: "map", role: "img", "aria-label": label });
    if (choose) {
      this.canvas.setAttribute("tabindex", "0");
      this.canvas.setAttribute("role", "application");
      this.canvas.setAttribute("aria-roledescription", "map of patches: arrow keys move");
      this.canvas.addEventListener("click", (event) => this.click(event));
      this.canvas.addEventListener("keydown", (event) => this.key(event));
    }
    this.low = el("span", {});
    this.high = el("span", {});
    this.bar = el("span", { class: "bar" });
    this.legend = el("div", { class: "legend", hidden: !legend }, this.low, this.bar, this.high);
    this.caption = el("figcaption", {}, label);
    this.element = el("figure", { class: "view" }, this.canvas, this.legend, this.caption);
  }

  /** Show values, one for each patch, in a scale of color; the legend shows the scale's ends. */
  async values(values, grid, { least, most, scale = "heat", opacity = 0.5, unit = short } = {}) {
    this.low.textContent = unit(least);
    this.high.textContent = unit(most);
    this.bar.style.background = gradient(scale);
    await this.draw(grid, (context) => paint(context, values, grid, { least, most, scale, opacity: this.url ? opacity : 1 }));
  }

  /** Show three numbers of each patch as red, green and blue. */
  async colors(colors, grid) {
    this.legend.hidden = true;
    await this.draw(grid, (context) => paintColors(context, colors, grid));
  }

  async draw(grid, layer) {
    this.grid = grid;
    this.layer = layer;
    this.image = this.url ? await picture(this.url) : null;
    this.refresh();
  }

  refresh() {
    const [rows, columns] = this.grid;
    const ratio = this.image ? this.image.width / this.image.height : columns / rows;
    const width = Math.round(ratio >= 1 ? this.side : this.side * ratio);
    const height = Math.round(ratio >= 1 ? this.side / ratio : this.side);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = width < (this.image?.width ?? 0);
    if (this.image) context.drawImage(this.image, 0, 0, width, height);
    if (this.layer) this.layer(context);
    if (this.lines) this.drawLines(context);
    for (const { patch, color } of this.marks) this.mark(context, patch, color);
    if (this.chosen !== null) this.mark(context, this.chosen, "#ffffff");
  }

  drawLines(context) {
    const [rows, columns] = this.grid;
    const { width, height } = this.canvas;
    context.strokeStyle = "rgba(255, 255, 255, 0.55)";
    context.lineWidth = 1;
    context.beginPath();
    for (let row = 1; row < rows; row++) context.moveTo(0, (row * height) / rows), context.lineTo(width, (row * height) / rows);
    for (let i = 1; i < columns; i++) context.moveTo((i * width) / columns, 0), context.lineTo((i * width) / columns, height);
    context.stroke();
  }

  mark(context, patch, color) {
    const [rows, columns] = this.grid;
    const [wide, tall] = [this.canvas.width / columns, this.canvas.height / rows];
    const [x, y] = [(patch % columns) * wide, Math.floor(patch / columns) * tall];
    for (const [style, thick] of [["#000000", 5], [color, 2.5]]) {
      context.strokeStyle = style;
      context.lineWidth = thick;
      context.strokeRect(x + 1, y + 1, wide - 2, tall - 2);
    }
  }

  click(event) {
    const [rows, columns] = this.grid;
    const box = this.canvas.getBoundingClientRect();
    const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
    const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
    this.choose(row * columns + column);
  }

  key(event) {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    const [rows, columns] = this.grid;
    const at = this.chosen ?? 0;
    const row = Math.min(rows - 1, Math.max(0, Math.floor(at / columns) + move[0]));
    const column = Math.min(columns - 1, Math.max(0, (at % columns) + move[1]));
    this.choose(row * columns + column);
  }
}
