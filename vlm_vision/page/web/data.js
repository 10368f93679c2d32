// The description of the page, and its arrays.

export const about = JSON.parse(document.getElementById("about").textContent);

const decoded = new WeakMap();

/** Promise of the numbers of an array's entry, such as {array: 3, dtype: "float32", shape: [2, 4]}. */
export function load(entry) {
  if (!decoded.has(entry)) decoded.set(entry, unpack(entry));
  return decoded.get(entry);
}

async function unpack(entry) {
  const holder = entry.text === undefined ? document.getElementById(`array-${entry.array}`) : null;
  const bytes = await inflate(holder ? holder.textContent : entry.text);
  if (holder) holder.remove(); // the text is not needed again
  const size = { float32: 4, float16: 2, int16: 2, uint8: 1 }[entry.dtype];
  const whole = size === 1 ? bytes : interleave(bytes, size);
  if (entry.dtype === "float32") return new Float32Array(whole.buffer);
  if (entry.dtype === "int16") return new Int16Array(whole.buffer);
  if (entry.dtype === "float16") return fromHalf(new Uint16Array(whole.buffer));
  return whole;
}

async function inflate(text) {
  const packed = atob(text);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Arrays come with all first bytes of the numbers, then all second bytes, and so on. */
function interleave(planes, size) {
  const count = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let byte = 0; byte < size; byte++) {
    for (let i = 0; i < count; i++) bytes[i * size + byte] = planes[byte * count + i];
  }
  return bytes;
}

/** IEEE 754 half precision to single precision. */
function fromHalf(halves) {
  const values = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) {
    const sign = halves[i] & 0x8000 ? -1 : 1;
    const exponent = (halves[i] >> 10) & 31;
    const fraction = halves[i] & 1023;
    if (exponent === 0) values[i] = sign * fraction * 2 ** -24;
    else if (exponent === 31) values[i] = fraction ? NaN : sign * Infinity;
    else values[i] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return values;
}

const layers = new WeakMap();

/** Promise of a layer's queries and keys: {heads, tokens, keyCount, width, queries, keys, windows, scale, prefix, grid}. */
export async function loadLayer(encoder, image, tower, layer) {
  const shown = about.encoders[encoder].images[image].towers[tower];
  if (!shown.attention[layer] && about.served) {
    shown.attention[layer] = await ask(`attention/${encoder}/${image}/${tower}/${layer}`);
  }
  const entry = shown.attention[layer];
  if (!entry) throw new Error(`the page holds no attention of layer ${layer}: make it with --layers ${layer}, or with --serve`);
  if (!layers.has(entry)) layers.set(entry, open(entry));
  return layers.get(entry);
}

async function open(entry) {
  const [heads, tokens, width] = entry.queries.shape;
  return {
    heads, tokens, width, keyCount: entry.keys.shape[1], scale: entry.scale, prefix: entry.prefix, grid: entry.grid,
    queries: await load(entry.queries),
    keys: await load(entry.keys),
    windows: entry.windows ? await load(entry.windows) : null,
  };
}

/** Promise of what the server of `vlm-vision look --serve` answers. */
export async function ask(path, body) {
  const response = await fetch(path, { method: body === undefined ? "GET" : "POST", body, headers: { "X-Vlm-Vision": "1" } });
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}
