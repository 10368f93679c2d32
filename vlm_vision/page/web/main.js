// The page: header, tabs, and window.vlmVision for tests and for other scripts.

import { AnswerTab } from "./answer.js";
import { AttentionTab } from "./attention.js";
import { ComparisonTab } from "./comparison.js";
import { about, ask, load, loadLayer } from "./data.js";
import { choices, el } from "./dom.js";
import { EpisodeTab } from "./episode.js";
import { FlowTab } from "./flow.js";
import { NormsTab, lengthsByLayer } from "./lengths.js";
import { attend, cosines } from "./numbers.js";
import { PatchesTab } from "./patches.js";
import { SimilarityTab } from "./similarity.js";
import { checkNumber, choose, onChange, row, state } from "./state.js";
import { TextsTab, similarities } from "./texts.js";

const TABS = {
  patches: ["Patches", PatchesTab],
  attention: ["Attention", AttentionTab],
  flow: ["Data flow", FlowTab],
  comparison: ["Comparison", ComparisonTab],
  similarity: ["Similarity", SimilarityTab],
  norms: ["Norms", NormsTab],
  text: ["Text", TextsTab],
  answer: ["Answer", AnswerTab],
  policy: ["Policy", EpisodeTab],
};

const shownTabs = Object.keys(TABS).filter((name) =>
  (name !== "text" || about.encoders.some((one) => one.texts)) && (name !== "answer" || about.answer) && (name !== "policy" || about.episode));
const tabs = {};
const built = {};
const panel = document.getElementById("panel");

function key() {
  return [state.encoder, state.tower, state.image, state.other, about.images.length].join();
}

async function show() {
  const name = state.tab;
  tabs[name] ??= new TABS[name][1]();
  try {
    if (built[name] !== key()) {
      tabs[name].build();
      built[name] = key();
    }
    if (panel.firstChild !== tabs[name].element) {
      panel.replaceChildren(tabs[name].element);
      panel.setAttribute("aria-labelledby", `tab-${name}`);
    }
    await tabs[name].update();
    document.getElementById("problem").textContent = "";
  } catch (error) {
    document.getElementById("problem").textContent = error.message;
  }
}

function header() {
  const { encoder, tower, image } = state;
  const towers = about.encoders[encoder].towers;
  const rows = [
    about.encoders.length > 1 ? choices("encoder", about.encoders.map((one) => one.name), encoder, (i) => choose({ encoder: i })) : null,
    towers.length > 1 ? choices("tower", towers.map((one) => one.name), tower, (i) => choose({ tower: i })) : null,
  ];
  const pictures = about.images.map((one, i) =>
    el("button", { type: "button", class: "picture", "aria-pressed": String(i === image), onclick: () => choose({ image: i }) },
      el("img", { src: one.url, alt: "", height: 44 }), el("span", {}, one.name)));
  document.getElementById("choices").replaceChildren(...rows.filter(Boolean),
    el("div", { class: "pictures", role: "group", "aria-label": "image" }, ...pictures, about.served ? upload() : ""));
  for (const name of shownTabs) {
    const tab = document.getElementById(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === state.tab));
    tab.tabIndex = name === state.tab ? 0 : -1;
    if (name === state.tab) tab.parentNode.scrollLeft = tab.offsetLeft - tab.parentNode.offsetLeft - 60;
  }
}

function upload() {
  const input = el("input", { type: "file", accept: "image/*", hidden: true, onchange: () => input.files[0] && send(input.files[0]) });
  return el("span", {}, el("button", { type: "button", class: "picture", onclick: () => input.click() }, "+ image, or drop one"), input);
}

async function send(file) {
  const problem = document.getElementById("problem");
  problem.textContent = `Computing ${file.name} ...`;
  try {
    const made = await ask(`image?name=${encodeURIComponent(file.name)}`, file);
    Object.assign(about, made);
    await choose({ image: about.images.length - 1 });
  } catch (error) {
    problem.textContent = error.message;
  }
}

function tabBar() {
  const move = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const name = shownTabs[(shownTabs.indexOf(state.tab) + step + shownTabs.length) % shownTabs.length];
    choose({ tab: name }).then(() => document.getElementById(`tab-${name}`).focus());
  };
  document.getElementById("tabs").replaceChildren(...shownTabs.map((name) =>
    el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel", onclick: () => choose({ tab: name }), onkeydown: move }, TABS[name][0])));
}

async function start() {
  document.getElementById("title").textContent = about.encoders.map((one) => one.name).join(", ");
  document.getElementById("made").textContent = `Made by vlm_vision ${about.version}. Everything is in this file: nothing is sent or loaded${about.served ? ", but for what this machine's server computes" : ""}.`;
  tabBar();
  onChange(header);
  onChange(show);
  if (about.served) {
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
    });
  }
  const { depth, layers, prefix } = about.encoders[0].towers[0];
  const { grid } = about.encoders[0].images[0].towers[0];
  await choose({
    tab: about.answer ? "answer" : about.episode ? "policy" : "attention",
    layer: layers.length ? layers[layers.length - 1] : depth - 1,
    other: Math.min(1, about.images.length - 1),
    token: Math.floor(grid[0] / 2) * grid[1] + Math.floor(grid[1] / 2),
    head: 0,
  });
  if (prefix.length) await choose({ token: prefix[0] });
}

function find({ encoder = 0, image = 0, tower = 0 }) {
  checkNumber("encoder", encoder, about.encoders.length);
  checkNumber("image", image, about.images.length);
  checkNumber("tower", tower, about.encoders[encoder].towers.length);
  return { described: about.encoders[encoder].towers[tower], shown: about.encoders[encoder].images[image].towers[tower] };
}

/** What the page shows, for tests and scripts; docs/look.md describes it. Numbers count from 0. */
window.vlmVision = {
  /** Promise of the first tab being drawn. */
  ready: null,
  about,
  /** Copy of what is chosen: {tab, encoder, tower, image, other, layer, head, token, patch}. */
  state: () => ({ ...state }),
  /** Change what is chosen; Promise of its being drawn. */
  async choose(changes) {
    if (changes.tab !== undefined && !shownTabs.includes(changes.tab)) throw new Error(`there is no tab ${changes.tab}: ${shownTabs.join(", ")}`);
    await choose(changes);
  },
  /** Promise of the softmax weights from a token to the N patches of its layer. */
  async attention({ encoder = 0, image = 0, tower = 0, layer, head, token }) {
    const { described } = find({ encoder, image, tower });
    checkNumber("layer", layer, described.depth);
    checkNumber("head", head, described.heads);
    const loaded = await loadLayer(encoder, image, tower, layer);
    return Array.from(attend(loaded, head, row(described, loaded, token)).patches);
  },
  /** Promise of the cosine of a patch with the patches of image `other`. */
  async similarity({ encoder = 0, image = 0, other = image, patch }) {
    find({ encoder, image });
    find({ encoder, image: other });
    const { images, width } = about.encoders[encoder];
    checkNumber("patch", patch, images[image].grid[0] * images[image].grid[1]);
    return Array.from(cosines(await load(images[image].tokens), patch, await load(images[other].tokens), width));
  },
  /** Promise of the lengths of the patch tokens after a block. */
  async lengths({ encoder = 0, image = 0, tower = 0, layer }) {
    const { described, shown } = find({ encoder, image, tower });
    checkNumber("layer", layer, described.depth);
    return Array.from((await lengthsByLayer(shown, described))[layer].patches);
  },
  /** Promise of the cosine of a text with the patches of an image. */
  async text({ encoder = 0, image = 0, text }) {
    find({ encoder, image });
    checkNumber("text", text, about.encoders[encoder].texts?.names.length ?? 0);
    return Array.from(await similarities(encoder, image, text));
  },
};
window.vlmVision.ready = start();
