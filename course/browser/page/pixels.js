// From a canvas to the 784 numbers that the networks take, as kdlib makes them: grey bytes, then (x - mean) / std.

export const SIDE = 28;
const VISIBLE = 20; // grey levels above the background that count as part of a piece
const NOISE = 12; // of a photo's background, after the background was removed

// The grey level of every pixel, 0 to 255, weighted as PIL does.
export function toGrey({ data }) {
  const grey = new Float32Array(data.length / 4);
  for (let i = 0; i < grey.length; i++) {
    grey[i] = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
  }
  return grey;
}

// The median grey level along the edge of a square picture: that of its background.
export function background(grey, side) {
  const edge = [];
  for (let i = 0; i < side; i++) {
    edge.push(grey[i], grey[(side - 1) * side + i], grey[i * side], grey[i * side + side - 1]);
  }
  return edge.sort((a, b) => a - b)[edge.length >> 1];
}

// 784 bytes of a square picture. invert: dark on light becomes light on dark. clean: the background becomes black.
// fit: the piece is cut out, centred, and its longer side made 28 pixels long, as the makers of the data set did.
export function toBytes(image, { invert = false, clean = false, fit = false }) {
  const side = image.width;
  let grey = toGrey(image);
  if (invert) grey = grey.map(level => 255 - level);
  if (clean) {
    const base = Math.min(background(grey, side), 254);
    grey = grey.map(level => Math.max(0, ((level - base) * 255) / (255 - base)));
    grey = grey.map(level => (level < NOISE ? 0 : level));
  }
  return shrink(grey, side, (fit && around(grey, side)) || { left: 0, top: 0, size: side });
}

// The smallest square around what is visible, or null for an empty picture.
function around(grey, side) {
  let [left, right, top, bottom] = [side, -1, side, -1];
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (grey[y * side + x] <= VISIBLE) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
  }
  if (right < 0) return null;
  const size = Math.max(right - left, bottom - top) + 1;
  return { left: (left + right + 1 - size) / 2, top: (top + bottom + 1 - size) / 2, size };
}

// 28 x 28 averages over a square window; what lies outside the picture is black.
function shrink(grey, side, { left, top, size }) {
  const step = size / SIDE;
  const bytes = new Uint8Array(SIDE * SIDE);
  for (let row = 0; row < SIDE; row++) {
    const ys = shares(top + row * step, step, side);
    for (let column = 0; column < SIDE; column++) {
      let sum = 0;
      for (const [x, width] of shares(left + column * step, step, side)) {
        for (const [y, height] of ys) sum += grey[y * side + x] * width * height;
      }
      bytes[row * SIDE + column] = Math.round(Math.min(255, sum / (step * step)));
    }
  }
  return bytes;
}

// Which pixels an interval covers, and how much of each.
function shares(start, length, side) {
  const covered = [];
  for (let i = Math.max(0, Math.floor(start)); i < Math.min(side, start + length); i++) {
    covered.push([i, Math.min(i + 1, start + length) - Math.max(i, start)]);
  }
  return covered;
}

// What the networks take: mean and std of the training images, for pixels in [0, 1].
export function normalized(bytes, mean, std) {
  return Float32Array.from(bytes, byte => (byte - 255 * mean) / (255 * std));
}

// Draw 784 bytes on a canvas of any size, each as a square without smoothing.
export function paint(canvas, bytes) {
  const context = canvas.getContext("2d");
  const [width, height] = [canvas.width / SIDE, canvas.height / SIDE];
  bytes.forEach((byte, i) => {
    context.fillStyle = `rgb(${byte} ${byte} ${byte})`;
    context.fillRect((i % SIDE) * width, Math.floor(i / SIDE) * height, width, height);
  });
}
