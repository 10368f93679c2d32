// Tab "Policy": a recorded episode, which places the policy's actions depend on, and how far they are from the recorded ones.

import { about, load } from "./data.js";
import { choices, el, explain, slider } from "./dom.js";
import { range, short } from "./numbers.js";
import { MapView } from "./view.js";

export class EpisodeTab {
  constructor() {
    this.element = el("div", {});
    Object.assign(this, { time: 0, camera: 0 });
  }

  build() {
    const { task, moments, cameras } = about.episode;
    this.view = new MapView({ label: "what the action depends on", side: 420 });
    this.chart = el("canvas", { class: "chart", width: 640, height: 260, role: "img", "aria-label": "error of the action along the episode" });
    this.bar = el("div", {});
    this.sentence = el("p", { class: "reading", "aria-live": "polite" });
    this.element.replaceChildren(
      el("p", { class: "question" }, el("strong", {}, "Task: "), task),
      explain("A gray square is put on one camera's image at a time: the map shows how far the first action of the chunk moves, in standard deviations of the recorded actions. The curve is the distance of that action from the recorded one.",
        "Zeiler and Fergus 2013", "https://arxiv.org/abs/1311.2901"),
      slider("moment", moments.length - 1, this.time, (time) => {
        this.time = time;
        this.update();
      }),
      this.bar,
      el("div", { class: "split" }, this.view.element, el("figure", { class: "view wide" }, this.chart,
        el("figcaption", {}, "distance of the predicted from the recorded action, in standard deviations of the recorded actions; orange, the chosen moment"))),
      this.sentence,
    );
    this.bar.replaceChildren(choices("camera", cameras, this.camera, () => {}));
  }

  async update() {
    const { moments, cameras, errors, frames, grid, changes } = about.episode;
    this.bar.replaceChildren(choices("camera", cameras, this.camera, (camera) => {
      this.camera = camera;
      this.update();
    }));
    const [error, all] = [await load(errors), await load(changes)];
    const count = grid[0] * grid[1];
    const start = (this.time * cameras.length + this.camera) * count;
    const values = all.subarray(start, start + count);
    this.view.url = frames[this.time][this.camera];
    this.view.caption.textContent = `${cameras[this.camera]}, moment ${moments[this.time]}`;
    await this.view.values(values, grid, { least: 0, most: Math.max(1e-9, range(all).most) });
    this.draw(error);
    this.sentence.textContent = `At moment ${moments[this.time]} the action is ${short(error[this.time])} from the recorded one; the most that a covered square moves it is ${short(range(values).most)}.${
      range(all).most < 0.01 ? " No square of any moment moves it by a hundredth: this policy hardly uses its images." : ""}`;
  }

  draw(error) {
    const context = this.chart.getContext("2d");
    const { width, height } = this.chart;
    const style = getComputedStyle(document.body);
    const most = Math.max(range(error).most, 1e-9);
    const x = (i) => 50 + ((width - 70) * i) / Math.max(1, error.length - 1);
    const y = (value) => height - 30 - ((height - 50) * value) / most;
    context.clearRect(0, 0, width, height);
    context.font = "15px system-ui, sans-serif";
    context.fillStyle = style.getPropertyValue("--ink");
    for (const share of [0, 0.5, 1]) context.fillText(short(most * share), 2, y(most * share) + 5);
    about.episode.moments.forEach((moment, i) => (error.length < 12 || i % 4 === 0) && context.fillText(String(moment), x(i) - 6, height - 8));
    context.strokeStyle = style.getPropertyValue("--accent");
    context.lineWidth = 2.5;
    context.beginPath();
    error.forEach((value, i) => context.lineTo(x(i), y(value)));
    context.stroke();
    context.fillStyle = "#dc7a1a";
    context.beginPath();
    context.arc(x(this.time), y(error[this.time]), 6, 0, 7);
    context.fill();
  }
}
