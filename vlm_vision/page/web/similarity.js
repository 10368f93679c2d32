// Tab "Similarity": principal components that images share, and the patches of a second image that match.

import { about, load } from "./data.js";
import { choices, el, explain } from "./dom.js";
import { cosines, range, short } from "./numbers.js";
import { choose, encoder, inGrid, state, towerImage } from "./state.js";
import { MapView } from "./view.js";

export class SimilarityTab {
  constructor() {
    this.element = el("div", {});
    this.all = false;
  }

  build() {
    const { images } = encoder();
    const names = about.images.map((image) => image.name);
    const url = (image) => images[image].towers[0].url;
    this.here = new MapView({ label: "this image", url: url(state.image), side: 380, choose: (at) => choose({ token: inGrid(at, images[state.image].grid, towerImage().grid) }) });
    this.there = new MapView({ label: "the second image", url: url(state.other), side: 380 });
    this.colors = images.map((_, i) => new MapView({ label: names[i], side: 180 }));
    this.sentence = el("p", { class: "reading", "aria-live": "polite" });
    const others = choices("second image", names, state.other, (other) => choose({ other }));
    const toggle = el("button", { type: "button", class: "choice", "aria-pressed": "false", onclick: () => {
      this.all = !this.all;
      toggle.setAttribute("aria-pressed", String(this.all));
      this.update();
    } }, "all mutual matches");
    toggle.setAttribute("aria-pressed", String(this.all));
    this.element.replaceChildren(
      explain("Cosine of the chosen patch's token with all patches of this image and of a second one. The framed patch there is the nearest; two patches that are nearest to each other match.",
        "Amir et al. 2021", "https://arxiv.org/abs/2112.05814"),
      el("div", { class: "choices" }, others, toggle),
      el("div", { class: "split" }, this.here.element, this.there.element),
      this.sentence,
      el("h3", {}, "Principal components of all images together"),
      explain(`Red, green and blue are the first three components; they hold ${encoder().shares.map((share) => `${short(100 * share)} %`).join(", ")} of the variance. Equal colors in two images mean similar tokens.`,
        "Oquab et al. 2023", "https://arxiv.org/abs/2304.07193"),
      el("div", { class: "row" }, ...this.colors.map((view) => view.element)),
    );
  }

  async update() {
    const { images, width } = encoder();
    const [one, other] = [images[state.image], images[state.other]];
    const [tokens, others] = [await load(one.tokens), await load(other.tokens)];
    const [forth, back] = [await load(one.nearest[state.other]), await load(other.nearest[state.image])];
    const at = inGrid(state.patch, towerImage().grid, one.grid);
    const [near, far] = [cosines(tokens, at, tokens, width), cosines(tokens, at, others, width)];
    const best = range(far).most;
    const match = forth[at];
    const mutual = back[match] === at;
    const scale = { least: Math.min(0, range(near).least, range(far).least), most: 1 };
    this.here.chosen = at;
    this.there.marks = [{ patch: match, color: mutual ? "#ffffff" : "#ffb000" }];
    this.here.marks = [];
    if (this.all) this.markAll(forth, back);
    await this.here.values(near, one.grid, scale);
    await this.there.values(far, other.grid, scale);
    this.sentence.textContent = `Patch ${at} is most similar to patch ${match} of ${about.images[state.other].name}, cosine ${short(best)}: ${
      mutual ? "a mutual match" : `not mutual, for that one is nearer to patch ${back[match]}`}. ${forth.filter((to, from) => back[to] === from).length} of ${forth.length} patches have a mutual match.`;
    await Promise.all(this.colors.map(async (view, i) => view.colors(await load(images[i].components), images[i].grid)));
  }

  markAll(forth, back) {
    const palette = ["#648fff", "#ffb000", "#dc267f", "#ffffff", "#fe6100", "#785ef0"];
    const pairs = [...forth].map((to, from) => [from, to]).filter(([from, to]) => back[to] === from);
    this.here.marks = pairs.map(([from], i) => ({ patch: from, color: palette[i % 6] }));
    this.there.marks.unshift(...pairs.map(([, to], i) => ({ patch: to, color: palette[i % 6] })));
  }
}
