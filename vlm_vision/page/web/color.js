// Color scales whose lightness grows steadily, which the color-blind and black-and-white printers keep in order.

const HEAT = ["#081d3a", "#133b66", "#275d80", "#4c8088", "#86a17f", "#c9bd6a", "#ffe45c"];
const SIGNED = ["#0b4f8a", "#5c93c4", "#c3d5e6", "#f4f2ee", "#f0cfa6", "#d98c3f", "#8f4a06"];

/** 256 colors, each a 32-bit number of red, green and blue, red lowest, as an ImageData holds them. */
function table(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (parts.length - 1);
    const low = Math.min(Math.floor(at), parts.length - 2);
    const [red, green, blue] = parts[low].map((value, c) => Math.round(value + (at - low) * (parts[low + 1][c] - value)));
    return red | (green << 8) | (blue << 16);
  });
}

export const scales = { heat: table(HEAT), signed: table(SIGNED) };

/** CSS gradient of a scale, for legends. */
export function gradient(name) {
  return `linear-gradient(90deg, ${(name === "heat" ? HEAT : SIGNED).join(",")})`;
}

const small = document.createElement("canvas");

/** Draw values (rows x columns) as colored cells over all of a canvas's context. With an opacity below 1 the image below
 *  shows through, most where values are low. */
export function paint(context, values, [rows, columns], { least, most, scale = "heat", opacity = 1 }) {
  const data = new ImageData(columns, rows);
  const cells = new Uint32Array(data.data.buffer);
  const colors = scales[scale];
  const factor = most > least ? 255 / (most - least) : 0;
  for (let i = 0; i < cells.length; i++) {
    const level = Math.max(0, Math.min(255, Math.round((values[i] - least) * factor)));
    const strength = scale === "signed" ? Math.abs(level - 127.5) / 127.5 : level / 255;
    const alpha = opacity < 1 ? opacity + (0.85 - opacity) * strength : 1;
    cells[i] = colors[level] | (Math.round(255 * alpha) << 24);
  }
  put(context, data);
}

/** Draw red, green and blue (rows x columns x 3) as colored cells. */
export function paintColors(context, colors, [rows, columns]) {
  const data = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    data.data.set([colors[3 * i], colors[3 * i + 1], colors[3 * i + 2], 255], 4 * i);
  }
  put(context, data);
}

function put(context, data) {
  small.width = data.width;
  small.height = data.height;
  small.getContext("2d").putImageData(data, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}
