// Tab "Answer": where a vision-language model looks while it answers, and which places its answer depends on.

import { about, load } from "./data.js";
import { choices, el, explain } from "./dom.js";
import { percent, range, short } from "./numbers.js";
import { MapView } from "./view.js";

export class AnswerTab {
  constructor() {
    this.element = el("div", {});
    Object.assign(this, { token: 0, layer: 0, head: 0 });
  }

  build() {
    const { question, words, probabilities, layers, url, original, occlusion } = about.answer;
    this.layer = layers - 1;
    this.attention = new MapView({ label: "attention to image tokens", url, side: 400 });
    this.hidden = new MapView({ label: "what the answer depends on", url: original, side: 400 });
    this.bar = el("div", {});
    this.sentence = el("p", { class: "reading", "aria-live": "polite" });
    this.element.replaceChildren(
      el("p", { class: "question" }, el("strong", {}, "Question: "), question),
      el("p", { class: "question" }, el("strong", {}, "Answer: "), words.join("") || "(nothing)",
        el("small", {}, ` with probability ${percent(probabilities.reduce((a, b) => a * b, 1))}`)),
      explain("Left: softmax weights of the language model, from the place where it predicts a token of its answer to the image tokens. Attention shows what is read, not what decides: right, gray squares are put on the image one at a time, and the map shows how much less probable the same answer becomes.",
        "Zeiler and Fergus 2013", "https://arxiv.org/abs/1311.2901"),
      this.bar,
      el("div", { class: "split" }, this.attention.element, this.hidden.element),
      this.sentence,
      el("p", { class: "note" }, `${occlusion.grid[0]} x ${occlusion.grid[1]} squares were covered, one at a time. Values are differences of the logarithm of the answer's probability.`),
    );
  }

  async update() {
    const { words, layers, heads, attention, grid, occlusion, probabilities } = about.answer;
    const pick = (name) => (i) => {
      this[name] = i;
      this.update();
    };
    this.bar.replaceChildren(
      choices("token of the answer", words.map((word) => JSON.stringify(word).slice(1, -1)), this.token, pick("token")),
      choices("layer", [...Array(layers).keys()], this.layer, pick("layer")),
      choices("head", ["mean", ...Array(heads).keys()], this.head, pick("head")),
    );
    const values = await answerAttention(this.token, this.layer, this.head - 1);
    const drops = await load(occlusion.drops);
    const bound = Math.max(1e-6, Math.abs(range(drops).least), Math.abs(range(drops).most));
    this.attention.caption.textContent = `“${words[this.token]}”, layer ${this.layer}, ${this.head ? `head ${this.head - 1}` : "mean of heads"}`;
    this.hidden.caption.textContent = "covered here, the answer becomes: orange, less probable; blue, more probable";
    const shape = grid ?? [1, attention.shape[3]];
    await this.attention.values(values, shape, { least: 0, most: range(values).most, unit: percent });
    await this.hidden.values(drops, occlusion.grid, { least: -bound, most: bound, scale: "signed" });
    const total = values.reduce((a, b) => a + b, 0);
    this.sentence.textContent = `This token (probability ${percent(probabilities[this.token])}) gives ${percent(total)} of its attention here to the image; the square that matters most lowers the logarithm of the answer's probability by ${short(range(drops).most)}.`;
  }
}

/** Promise of the attention of a token of the answer to the image tokens; head -1 for the mean of all. */
export async function answerAttention(token, layer, head) {
  const { attention } = about.answer;
  const [, layers, heads, count] = attention.shape;
  const all = await load(attention);
  const of = (h) => all.subarray(((token * layers + layer) * heads + h) * count, ((token * layers + layer) * heads + h + 1) * count);
  if (head >= 0) return of(head);
  const mean = new Float64Array(count);
  for (let h = 0; h < heads; h++) of(h).forEach((value, i) => (mean[i] += value / heads));
  return mean;
}
