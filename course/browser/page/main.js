// The page: which picture, which networks, and who is asked when.

import { argmax, makeBars, showFacts, showHead, showProgress, softmax, verdict } from "./answers.js";
import { Engine } from "./engine.js";
import { Pad } from "./pad.js";
import { normalized, paint, SIDE, toBytes } from "./pixels.js";
import { canKeep, fetchAsset, keep } from "./store.js";

const $ = id => document.getElementById(id);
const heads = [$("teacher-head"), $("student-head")];

// Without these two there is no page: where one is missing, it says so and goes no further.
const needed = loading => loading.catch(error => (tell(error), Promise.reject(error)));

export const contents = await needed(fetchContents());
const engine = new Engine();

const teacher = contents.networks[0];
const students = contents.networks.slice(1);
const bars = makeBars(document.querySelector("#bars tbody"), contents.classes);

let bytes = new Uint8Array(SIDE * SIDE); // what the networks see

// ---- the networks

const precision = () => document.querySelector("[name=precision]:checked").value;
const pair = () => [teacher, students[$("student").value]];
const keyOf = (network, kind) => `${contents.networks.indexOf(network)} ${kind}`;

const opening = new Map(); // by key: a network is opened once, however often somebody asks

// Opens a network, showing the progress in its head. The files are large: one after the other.
function openNetwork(network, kind) {
  const key = keyOf(network, kind);
  if (!opening.has(key)) {
    const head = heads[network === teacher ? 0 : 1];
    const progress = share => pair().includes(network) && kind === precision() && showProgress(head, share);
    const opened = (async () => {
      await started;
      await engine.open(key, await fetchAsset(network[kind], progress), SIDE * SIDE);
    })();
    opened.catch(() => opening.delete(key)); // so that the next try fetches again
    opening.set(key, opened);
  }
  return opening.get(key);
}

const started = fetchAsset(contents.runtime.wasm).then(wasm => engine.start(contents.runtime, wasm));

// The logits of one network of contents.networks for 784 bytes.
export async function logits(network, kind, pixels) {
  await openNetwork(network, kind);
  return engine.run(keyOf(network, kind), normalized(pixels, contents.mean, contents.std));
}

// ---- answers

let asked = 0;
let busy = null;
let examining = false;

// Asks both networks about what is on the pad. While they are at it, only the latest question waits.
function ask() {
  asked++;
  $("verdict").ariaBusy = "true"; // screen readers wait until both have answered
  busy ??= answerAll().finally(() => {
    busy = null;
    $("verdict").ariaBusy = "false";
  });
  return busy;
}

async function answerAll() {
  for (let current = -1; current !== asked; ) {
    current = asked;
    try {
      await answer();
    } catch (error) {
      tell(error);
    }
  }
}

async function answer() {
  const [kind, networks, label, pixels] = [precision(), pair(), labelOf(pad.note.test), bytes];
  const probabilities = [null, null];
  const facts = () => {
    const medians = networks.map(one => (engine.isOpen(keyOf(one, kind)) ? engine.median(keyOf(one, kind)) : null));
    showFacts(document.querySelector("#facts tbody"), networks, kind, medians);
  };
  networks.forEach((network, i) => {
    if (engine.isOpen(keyOf(network, kind))) return;
    showHead(heads[i], network.name, contents.classes, null);
    bars.show(i, null);
  });
  facts();
  bars.mark(label);
  for (const i of [1, 0]) { // the student first: it is small
    probabilities[i] = softmax(await logits(networks[i], kind, pixels));
    showProgress(heads[i], null);
    showHead(heads[i], networks[i].name, contents.classes, probabilities[i]);
    bars.show(i, probabilities[i]);
  }
  facts();
  $("exam").disabled = false;
  $("verdict").className = "";
  $("verdict").textContent = verdict(contents.classes, ...probabilities, label);
}

async function fetchContents() {
  const response = await fetch("contents.json");
  if (!response.ok) throw new Error(`contents.json could not be loaded (${response.status}). Reload the page.`);
  return response.json();
}

function tell(error) {
  console.error(error);
  $("verdict").className = "alert";
  $("verdict").textContent = error.message;
}

// ---- the picture

const pad = new Pad(
  $("pad"),
  $("ring"),
  $("brush-said"),
  () => ({ brush: Number($("brush").value), shade: Number($("shade").value), mirror: $("mirror").checked }),
  () => {
    if (pad.note.test !== null) note({ ...pad.note, test: null, description: `${pad.note.description}, drawn over` });
    look();
  },
);

// What is on the pad. test: the test picture's number, or null. photo: its background is to be removed. fit and invert:
// the two boxes, which the user may change.
function note({ test = null, photo = false, fit = false, invert = false, description }) {
  pad.note = { test, photo, fit, invert, description };
  $("fit").checked = fit;
  $("invert").checked = invert;
  for (const choice of document.getElementsByName("picture")) choice.checked = Number(choice.value) === test;
}

const labelOf = test => (test === null ? null : contents.pictures.labels[test]);

// Turns what is on the pad into what the networks see, and asks them.
function look() {
  const { photo, fit, invert, description } = pad.note;
  bytes = toBytes(pad.image(), { clean: photo, fit, invert });
  paint($("seen"), bytes);
  $("seen").ariaLabel = `What the networks see: ${description}`;
  return ask();
}

const pixelsOf = test => pictures.subarray(test * SIDE * SIDE, (test + 1) * SIDE * SIDE);

function showTest(test) {
  pad.showBytes(pixelsOf(test));
  note({ test, description: `a test picture, ${contents.classes[labelOf(test)]}` });
  return look();
}

async function showPhoto(file) {
  let photo;
  try {
    photo = await createImageBitmap(file);
  } catch {
    tell(new Error(`${file.name} cannot be read as a picture. Take a JPEG, PNG or WebP file.`));
    return;
  }
  const level = pad.showPhoto(photo);
  photo.close();
  note({ photo: true, fit: true, invert: level > 127, description: `your photo ${file.name}` });
  look();
}

function clear() {
  pad.clear();
  note({ fit: true, description: "your drawing" });
  look();
}

const pictures = await needed(fetchAsset(contents.pictures));

function makeThumbnails() {
  contents.pictures.labels.forEach((label, number) => {
    const [frame, choice, canvas] = ["label", "input", "canvas"].map(tag => document.createElement(tag));
    Object.assign(choice, { type: "radio", name: "picture", value: number });
    choice.ariaLabel = `Test picture ${number + 1}, ${contents.classes[label]}`;
    choice.addEventListener("change", () => showTest(number));
    frame.title = contents.classes[label];
    canvas.width = canvas.height = SIDE;
    paint(canvas, pixelsOf(number));
    frame.append(choice, canvas);
    $("thumbnails").append(frame);
  });
}

// ---- all test pictures at once

async function exam() {
  const [kind, networks, { labels }] = [precision(), pair(), contents.pictures];
  const right = [0, 0];
  let same = 0;
  for (const [number, label] of labels.entries()) {
    $("exam").textContent = `${number + 1} of ${labels.length} …`;
    const said = [];
    for (const network of networks) said.push(argmax(Array.from(await logits(network, kind, pixelsOf(number)))));
    said.forEach((answer, i) => (right[i] += Number(answer === label)));
    same += Number(said[0] === said[1]);
  }
  $("exam-result").textContent =
    `${networks[0].name} ${right[0]} right, ${networks[1].name} ${right[1]} (${kind}); they agree on ${same}. ` +
    `${labels.length} pictures are too few to say who is better.`;
  ask(); // the medians have changed
}

// One at a time. The button is not disabled meanwhile, since the focus would leave it.
async function holdExam() {
  if (examining) return;
  const button = $("exam");
  const text = button.textContent;
  examining = true;
  button.ariaDisabled = "true";
  button.ariaLabel = text; // screen readers would read out every picture's number
  await exam().catch(tell);
  examining = false;
  button.textContent = text;
  button.ariaLabel = null;
  button.ariaDisabled = "false";
}

// ---- without a network

// How it ended. Screen readers speak this sentence only, not the number of every file before.
function tellKept(sentence) {
  $("keeping").textContent = "";
  $("kept").textContent = sentence;
}

async function keepEverything() {
  if (!canKeep) {
    tellKept(
      isSecureContext
        ? "This browser keeps nothing of the page (a private window, or blocked site data): it needs its host."
        : "From this address the page needs its host: browsers keep pages from localhost or https only.",
    );
    return;
  }
  const { script, glue, wasm } = contents.runtime;
  const assets = [contents.pictures, script, glue, wasm];
  for (const kind of ["float", "int8"]) assets.push(...contents.networks.map(network => network[kind]));
  const told = number =>
    ($("keeping").textContent = `Keeping the page for use without a network: ${number} of ${assets.length} files.`);
  await navigator.serviceWorker.register("sw.js");
  const complete = await keep(assets, ["./", ...contents.page], told);
  await navigator.serviceWorker.ready;
  tellKept(
    complete
      ? "Everything is kept on this device: the page also works without a network."
      : "The browser has no room to keep all of the page; without a network it does not work.",
  );
}

// ---- start

students.forEach((network, i) => $("student").add(new Option(network.name, i)));
$("student-choice").hidden = students.length < 2;
$("runtime").textContent =
  `The networks run in onnxruntime-web ${contents.runtime.version} (MIT licence), ` +
  `${((contents.runtime.wasm.bytes + contents.runtime.script.bytes) / 1e6).toFixed(1)} MB, downloaded once.`;
makeThumbnails();

$("clear").addEventListener("click", clear);
$("undo").addEventListener("click", () => {
  if (!pad.undo()) return;
  note(pad.note);
  look();
});
$("upload").addEventListener("change", () => {
  const [file] = $("upload").files;
  $("upload").value = ""; // so that the same file can be taken again
  if (file) showPhoto(file);
});
$("pad").addEventListener("dragover", event => {
  event.preventDefault();
  $("pad").classList.add("over");
});
$("pad").addEventListener("dragleave", () => $("pad").classList.remove("over"));
$("pad").addEventListener("drop", event => {
  event.preventDefault();
  $("pad").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) showPhoto(file);
});
for (const id of ["fit", "invert"]) {
  $(id).addEventListener("change", () => {
    note({ ...pad.note, [id]: $(id).checked });
    look();
  });
}
for (const choice of document.querySelectorAll("[name=precision]")) choice.addEventListener("change", ask);
$("student").addEventListener("change", ask);
$("exam").addEventListener("click", holdExam);

note({ fit: true, description: "your drawing" }); // what Undo comes back to
await showTest(0);
keepEverything().catch(error => tellKept(`The page could not be kept: ${error.message}`));
