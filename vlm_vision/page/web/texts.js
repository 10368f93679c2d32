// Tab "Text": which patches a text fits.

import { about, ask, load } from "./data.js";
import { choices, el, explain } from "./dom.js";
import { cosines, range, short } from "./numbers.js";
import { encoder, encoderImage, state } from "./state.js";
import { MapView } from "./view.js";

export class TextsTab {
  constructor() {
    this.element = el("div", {});
    this.text = 0;
  }

  build() {
    const { texts, images } = encoder();
    if (!texts) {
      const pairs = about.encoders.filter((one) => one.texts).map((one) => one.name);
      this.element.replaceChildren(el("p", { class: "note" }, pairs.length
        ? `${encoder().name} has no text tower here. Choose ${pairs.join(" or ")}.`
        : "No encoder of this page has a text tower: pass a CLIP or SigLIP and --text \"a photo of a cat\"."));
      return;
    }
    this.choices = el("div", {});
    this.view = new MapView({ label: "similarity to the text", url: images[state.image].towers[0].url });
    const input = el("input", { type: "text", placeholder: "a text of your own", "aria-label": "a text of your own", maxlength: 300 });
    const form = el("form", { class: "choices", onsubmit: (event) => {
      event.preventDefault();
      this.add(input.value.trim());
    } }, input, el("button", { type: "submit", class: "choice" }, "show"));
    this.sentence = el("p", { class: "reading", "aria-live": "polite" });
    this.element.replaceChildren(
      explain("Cosine of the text's features with those that the tower would pool from each patch alone. The towers were trained on whole images: maps show what a patch adds, and are coarse.",
        "Zhou et al. 2021", "https://arxiv.org/abs/2112.01071"),
      this.choices, about.served ? form : el("p", { class: "note" }, "Other texts: make the page with --text, or with --serve."),
      this.view.element, this.sentence,
    );
  }

  async add(text) {
    if (!text) return;
    const { texts } = encoder();
    try {
      const made = await ask("text", JSON.stringify({ encoder: state.encoder, text }));
      texts.features = made.features;
      texts.names = made.names;
      this.text = texts.names.indexOf(text);
      await this.update();
    } catch (error) {
      this.sentence.textContent = error.message;
    }
  }

  async update() {
    const { texts, width } = encoder();
    if (!texts) return;
    this.text = Math.min(this.text, texts.names.length - 1);
    this.choices.replaceChildren(choices("text", texts.names, this.text, (i) => {
      this.text = i;
      this.update();
    }));
    if (!texts.features) return;
    const shown = encoderImage();
    const values = await similarities(state.encoder, state.image, this.text);
    const { least, most } = range(values);
    this.view.caption.textContent = texts.names[this.text];
    await this.view.values(values, shown.grid, { least, most });
    this.sentence.textContent = `Patch ${values.indexOf(most)} fits “${texts.names[this.text]}” best, cosine ${short(most)}; the least has ${short(least)}.`;
  }
}

/** Promise of the cosine of a text with each patch of an image. */
export async function similarities(encoderAt, image, text) {
  const { texts, images } = about.encoders[encoderAt];
  return cosines(await load(texts.features), text, await load(images[image].texts), texts.features.shape[1]);
}
