// What is chosen, in all tabs alike.

import { about, loadLayer } from "./data.js";

export const state = { tab: "attention", encoder: 0, tower: 0, image: 0, other: 0, layer: 0, head: 0, token: 0 };

const listeners = [];

/** Call `listener` after each change. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Change what is chosen, and make it fit: a layer that there is, a token of this grid. Promise of the tabs being drawn. */
export async function choose(changes) {
  const before = { ...state };
  Object.assign(state, changes);
  state.tower = Math.min(state.tower, encoder().towers.length - 1);
  const { layers, heads, depth, prefix } = tower();
  const held = about.served ? [...Array(depth).keys()] : layers;
  if (!held.includes(state.layer)) state.layer = held[held.length - 1] ?? 0;
  if (typeof state.token === "number") state.token = Math.min(state.token, patchCount() - 1);
  else if (!prefix.includes(state.token)) state.token = 0;
  state.head = Math.min(state.head, heads - 1);
  await Promise.all(listeners.map((listener) => listener(before)));
}

export const encoder = () => about.encoders[state.encoder];
export const tower = () => encoder().towers[state.tower];
export const encoderImage = (image = state.image) => encoder().images[image];
export const towerImage = (image = state.image) => encoderImage(image).towers[state.tower];
export const patchCount = () => towerImage().grid[0] * towerImage().grid[1];
/** The chosen patch, also while a prefix token is chosen. */
export const patch = () => (typeof state.token === "number" ? state.token : 0);

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
