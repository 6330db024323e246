// What the page shows of the answers: two heads, bars that meet at the class names, and a table of costs.

const element = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, logit => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(power => power / sum);
}

export const argmax = values => values.indexOf(Math.max(...values));

// Never 100 %: no softmax is that sure.
const percent = share => (share > 0.999 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`);

// Rows for the classes; returns show(column, probabilities) and mark(label).
export function makeBars(body, classes) {
  const rows = classes.map(name => {
    const row = element("tr");
    const cells = [element("td"), element("th", name), element("td")];
    cells[1].scope = "row";
    for (const cell of [cells[0], cells[2]]) {
      const [line, track] = [element("div"), element("div", "", "track")];
      track.ariaHidden = "true";
      track.append(element("span"));
      line.append(track, element("span", "–", "value"));
      cell.append(line);
    }
    row.append(...cells);
    body.append(row);
    return row;
  });
  return {
    show(column, probabilities) {
      const top = probabilities ? argmax(probabilities) : -1;
      rows.forEach((row, i) => {
        const cell = row.cells[2 * column];
        cell.className = i === top ? "top" : "";
        cell.querySelector(".track span").style.transform = `scaleX(${probabilities?.[i] ?? 0})`;
        cell.querySelector(".value").textContent = probabilities ? percent(probabilities[i]) : "–";
      });
    },
    // Underlines the class that the data set gives this picture; null where nobody knows.
    mark(label) {
      rows.forEach((row, i) => row.classList.toggle("label", i === label));
    },
  };
}

export function showHead(head, name, classes, probabilities) {
  head.querySelector(".name").textContent = name;
  head.querySelector(".says").textContent = probabilities ? classes[argmax(probabilities)] : "\u00a0";
  head.querySelector(".sure").textContent = probabilities ? percent(Math.max(...probabilities)) : "Loading …";
}

export function showProgress(head, share) {
  const bar = head.querySelector("progress");
  bar.hidden = share === null;
  bar.value = share ?? 1;
}

// One sentence on both answers. label: the data set's, or null.
export function verdict(classes, teacher, student, label) {
  const [t, s] = [argmax(teacher), argmax(student)];
  const both = t === s ? `Both say ${classes[t]}` : `Teacher: ${classes[t]}. Student: ${classes[s]}`;
  if (label === null) return `${both}.`;
  return t === s && t === label ? `${both}, and so does the label.` : `${both}. The label: ${classes[label]}.`;
}

const megabytes = bytes => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB`;
const millions = count => `${(count / 1e6).toFixed(count < 1e7 ? 2 : 1)} M`;
const time = ms => `${ms.toFixed(ms < 10 ? 2 : 1)} ms`;

// "85 × smaller": how a student's number compares with the teacher's. words: for less and for more.
function compared(student, teacher, words) {
  const [times, word] = student <= teacher ? [teacher / student, words[0]] : [student / teacher, words[1]];
  return times < 1.005 ? "equal" : `${times.toFixed(times < 9.95 ? 1 : 0)} × ${word}`;
}

// networks: [teacher, student]; medians: their milliseconds, null while one is loading.
export function showFacts(body, networks, precision, medians) {
  const rows = [
    ["Download", networks.map(one => one[precision].bytes), megabytes, ["smaller", "larger"]],
    ["Time", medians, time, ["faster", "slower"]],
    ["Parameters", networks.map(one => one.parameters), millions, ["fewer", "more"]],
    ["MACs", networks.map(one => one.macs), millions, ["fewer", "more"]],
  ];
  const lines = rows.map(([name, [teacher, student], format, words]) => {
    const known = teacher !== null && student !== null;
    const [left, right] = [teacher, student].map(value => (value === null ? "…" : format(value)));
    return [name, left, right, known ? compared(student, teacher, words) : "…"];
  });
  const noted = networks.map(one => one.testAccuracy);
  if (noted.some(accuracy => accuracy !== null)) {
    lines.push(["Accuracy", ...noted.map(one => (one === null ? "not noted" : `${(100 * one).toFixed(2)} %`)), "as float"]);
  }
  body.replaceChildren(
    ...lines.map(([name, ...values]) => {
      const row = element("tr");
      const head = element("th", name);
      head.scope = "row";
      row.append(head, ...values.map(value => element("td", value)));
      return row;
    }),
  );
}
