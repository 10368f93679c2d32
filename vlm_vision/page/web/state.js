// What is chosen, in all tabs alike.

import { about, loadLayer } from "./data.js";

export const state = { tab: "attention", encoder: 0, tower: 0, image: 0, other: 0, layer: 0, head: 0, token: 0, patch: 0 };

const listeners = [];
let latest = 0;
let drawn = Promise.resolve();

/** Call `listener` after each change. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Change what is chosen, and make it fit: a layer that there is, the same place in another grid. Promise of the tabs being
 *  drawn. `patch` is the patch chosen last, also while a prefix token is chosen. */
export function choose(changes) {
  const before = { ...state };
  const wanted = { ...state, ...changes };
  checkNumber("encoder", wanted.encoder, about.encoders.length);
  checkNumber("image", wanted.image, about.images.length);
  Object.assign(state, wanted);
  state.tower = Math.min(state.tower, encoder().towers.length - 1);
  const { layers, heads, depth, prefix } = tower();
  const held = about.served ? [...Array(depth).keys()] : layers;
  if (!held.includes(state.layer)) state.layer = held[held.length - 1] ?? 0;
  if (typeof state.token === "number") state.patch = state.token;
  const { grid } = towerImage();
  if (before.encoder !== state.encoder || before.tower !== state.tower || before.image !== state.image) {
    const { encoder, image, tower } = before;
    const from = about.encoders[encoder].images[image].towers[tower];
    const same = image === state.image && image < about.images.length;
    state.patch = same ? samePlace(state.patch, from, towerImage()) : inGrid(state.patch, from.grid, grid);
  }
  state.patch = Math.min(state.patch, grid[0] * grid[1] - 1);
  if (typeof state.token === "number" || !prefix.includes(state.token)) state.token = state.patch;
  state.head = Math.min(state.head, heads - 1);
  const asked = (latest += 1);
  drawn = drawn.catch(() => null).then(() => (asked === latest ? Promise.all(listeners.map((listener) => listener())) : null)); // one after the other
  return drawn;
}

/** Raise an Error unless `value` is a whole number from 0 to `count` - 1. */
export function checkNumber(name, value, count) {
  if (!Number.isInteger(value) || value < 0 || value >= count) throw new Error(`${name} is ${value}: expected 0 to ${count - 1}`);
}

export const encoder = () => about.encoders[state.encoder];
export const tower = () => encoder().towers[state.tower];
export const encoderImage = (image = state.image) => encoder().images[image];
export const towerImage = (image = state.image) => encoderImage(image).towers[state.tower];
/** A patch's number in another grid over the same pixels. */
export function inGrid(at, [rows, columns], [otherRows, otherColumns]) {
  const down = Math.floor(((Math.floor(at / columns) + 0.5) / rows) * otherRows);
  return down * otherColumns + Math.floor((((at % columns) + 0.5) / columns) * otherColumns);
}

/** The patch of another tower at the same place of the original, or the one nearest to it where that tower's crop lacks it. */
export function samePlace(at, from, to) {
  if (!from.place || !to.place) return inGrid(at, from.grid, to.grid);
  const [rows, columns] = from.grid;
  const [x0, y0, x1, y1] = from.place.box;
  const x = x0 + (((at % columns) + 0.5) / columns) * (x1 - x0);
  const y = y0 + ((Math.floor(at / columns) + 0.5) / rows) * (y1 - y0);
  const [left, top, right, bottom] = to.place.box;
  const within = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  const row = within((y - top) / (bottom - top), to.grid[0]);
  return row * to.grid[1] + within((x - left) / (right - left), to.grid[1]);
}

/** Row of a token in a layer's queries: "cls", "register0" or a patch number. Raises an Error with what there is. */
export function row(described, layer, token) {
  if (typeof token === "string") {
    const at = described.prefix.indexOf(token);
    if (at >= 0) return at;
    const have = described.prefix.length ? described.prefix.join(", ") : "none: its pooled vector is no token";
    throw new Error(`this encoder has no token ${token}; its tokens before the patches are ${have}`);
  }
  const count = layer.grid[0] * layer.grid[1];
  if (!Number.isInteger(token) || token < 0 || token >= count) throw new Error(`token is ${token}: expected 0 to ${count - 1}`);
  return layer.prefix + token;
}

/** Promise of the layer that is chosen. */
export const layerNow = () => loadLayer(state.encoder, state.image, state.tower, state.layer);
