// What the page computes itself: softmax weights from queries and keys, similarities of tokens.

/** Softmax weights of one token in one head: {prefix, patches, padding}, which sum to 1. */
export function attend(layer, head, token) {
  const { width, keyCount, windows, scale, prefix, queries, keys } = layer;
  const query = (head * layer.tokens + token) * width;
  const first = head * keyCount * width;
  const weights = new Float64Array(keyCount);
  let most = -Infinity;
  for (let s = 0; s < keyCount; s++) {
    if (windows && windows[s] !== windows[token]) {
      weights[s] = -Infinity;
      continue;
    }
    const key = first + s * width;
    let sum = 0;
    for (let k = 0; k < width; k++) sum += queries[query + k] * keys[key + k];
    weights[s] = sum * scale;
    if (weights[s] > most) most = weights[s];
  }
  let total = 0;
  for (let s = 0; s < keyCount; s++) total += weights[s] = Math.exp(weights[s] - most);
  for (let s = 0; s < keyCount; s++) weights[s] /= total;
  let padding = 0;
  for (let s = layer.tokens; s < keyCount; s++) padding += weights[s];
  return { prefix: weights.subarray(0, prefix), patches: weights.subarray(prefix, layer.tokens), padding };
}

/** Cosine similarity of row `at` of `one` (N, D) with every row of `other` (M, D). */
export function cosines(one, at, other, width) {
  const values = new Float64Array(other.length / width);
  const length = norm(one, at, width);
  for (let i = 0; i < values.length; i++) {
    let sum = 0;
    for (let k = 0; k < width; k++) sum += one[at * width + k] * other[i * width + k];
    values[i] = sum / Math.max(length * norm(other, i, width), 1e-12);
  }
  return values;
}

function norm(rows, at, width) {
  let sum = 0;
  for (let k = at * width; k < (at + 1) * width; k++) sum += rows[k] * rows[k];
  return Math.sqrt(sum);
}

/** {least, most} of some numbers. */
export function range(values) {
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return { least, most };
}

/** The number below which a share of the values lies. */
export function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

/** A number for people: three digits that count. */
export function short(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

/** A share in percent. */
export function percent(value) {
  return `${short(100 * value)} %`;
}
