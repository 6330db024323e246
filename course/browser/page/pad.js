// The drawing area: a dark square on which mouse, finger, pen or keys leave grey strokes, and which also shows test
// pictures and photos.

import { background, paint, toGrey } from "./pixels.js";

const UNDO_STEPS = 20;
const KEY_STEP = 10; // pixels: one of the 28 that the networks see

export class Pad {
  note = {}; // what the page knows of the picture; undo brings it back together with the pixels

  // ring: an element that shows where the keyboard's brush is; said: one that tells screen readers.
  // settings(): {brush, shade, mirror}. changed(): called after every stroke.
  constructor(canvas, ring, said, settings, changed) {
    this.canvas = canvas;
    this.ring = ring;
    this.said = said;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.side = canvas.width;
    this.settings = settings;
    this.changed = changed;
    this.history = [];
    this.last = null; // where the brush was, while it is down
    this.pointer = null; // which mouse, finger or pen draws: a second finger would draw lines across the pad
    this.cursor = { x: this.side / 2, y: this.side / 2, down: false }; // of the keyboard
    this.clear();
    this.history = [];
    canvas.addEventListener("pointerdown", event => this.#press(event));
    canvas.addEventListener("pointermove", event => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => this.#release(event));
    canvas.addEventListener("keydown", event => this.#key(event));
    canvas.addEventListener("blur", () => this.#hideRing());
  }

  image() {
    return this.context.getImageData(0, 0, this.side, this.side);
  }

  clear() {
    this.remember();
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, this.side, this.side);
  }

  remember() {
    this.history.push({ image: this.image(), note: this.note });
    if (this.history.length > UNDO_STEPS) this.history.shift();
  }

  // Whether there was anything to undo.
  undo() {
    const before = this.history.pop();
    if (!before) return false;
    this.context.putImageData(before.image, 0, 0);
    this.note = before.note;
    return true;
  }

  showBytes(bytes) {
    this.remember();
    paint(this.canvas, bytes);
  }

  // Shows a photo as a whole, on its own background; returns that background's grey level.
  showPhoto(photo) {
    this.remember();
    const { context, side } = this;
    const scale = side / Math.max(photo.width, photo.height);
    const [width, height] = [Math.max(1, photo.width * scale), Math.max(1, photo.height * scale)];
    context.fillStyle = "#fff"; // what is transparent counts as white
    context.fillRect(0, 0, side, side);
    context.drawImage(photo, 0, 0, side, side); // squeezed, to look at all of its edge
    const level = Math.round(background(toGrey(this.image()), side));
    context.fillStyle = `rgb(${level} ${level} ${level})`;
    context.fillRect(0, 0, side, side);
    context.fillStyle = "#fff";
    const [left, top] = [(side - width) / 2, (side - height) / 2];
    context.fillRect(left, top, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(photo, left, top, width, height);
    return level;
  }

  #press(event) {
    if (event.button || (this.pointer !== null && this.pointer !== event.pointerId)) return;
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.#hideRing();
    this.remember();
    this.last = null;
    this.#drag(event, true);
  }

  #drag(event, pressed = false) {
    if (event.pointerId !== this.pointer) return;
    if (!pressed && !(this.last && event.buttons)) return;
    const box = this.canvas.getBoundingClientRect();
    const scale = this.side / box.width;
    this.#stroke({ x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale });
  }

  #release(event) {
    if (event.pointerId === this.pointer) this.pointer = this.last = null;
  }

  #stroke(point) {
    const { brush, shade, mirror } = this.settings();
    const from = this.last ?? point;
    this.#line(from, point, brush, shade);
    if (mirror) this.#line(this.#mirrored(from), this.#mirrored(point), brush, shade);
    this.last = point;
    this.changed();
  }

  #mirrored({ x, y }) {
    return { x: this.side - x, y };
  }

  #line(from, to, brush, shade) {
    const { context } = this;
    context.strokeStyle = `rgb(${shade} ${shade} ${shade})`;
    context.lineWidth = brush;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y); // a line of no length would not be drawn everywhere
    context.stroke();
  }

  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { cursor } = this;
    let turned = "";
    if (event.key === " " || event.key === "Enter") {
      cursor.down = !cursor.down;
      turned = cursor.down ? "Brush down: " : "Brush up: ";
      this.last = null;
      if (cursor.down) this.remember();
    } else if (event.key in moves) {
      const [x, y] = moves[event.key];
      cursor.x = Math.min(this.side, Math.max(0, cursor.x + x * KEY_STEP));
      cursor.y = Math.min(this.side, Math.max(0, cursor.y + y * KEY_STEP));
    } else {
      return;
    }
    event.preventDefault(); // arrows and Space would scroll the page
    if (cursor.down) this.#stroke({ x: cursor.x, y: cursor.y });
    this.#showRing();
    const [steps, left, top] = [this.side, cursor.x, cursor.y].map(length => length / KEY_STEP);
    this.said.textContent = `${turned}${left} of ${steps} from the left, ${top} from the top`;
  }

  #showRing() {
    const { cursor, ring, side } = this;
    const share = length => `${(100 * length) / side}%`;
    ring.hidden = false;
    ring.classList.toggle("down", cursor.down);
    Object.assign(ring.style, { left: share(cursor.x), top: share(cursor.y), width: share(this.settings().brush) });
  }

  #hideRing() {
    this.cursor.down = false;
    this.ring.hidden = true;
    this.said.textContent = "";
  }
}
