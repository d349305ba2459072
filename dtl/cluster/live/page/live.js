"use strict";
// Asks for the state each second, and draws it. All text of the run is set as text, never as HTML.
const EVERY_MS = 1000, MOST_BARS = 40, COLOURS = ["var(--a)", "var(--b)", "var(--c)"];
const $ = (id) => document.getElementById(id);

function make(name, text, attributes = {}) {
  const svg = ["path", "text", "line", "g"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
const most_of = (n, which) => (n > MOST_BARS ? `; the ${which} ${MOST_BARS} of ${n.toLocaleString("en")}` : "");
const number = (x) => x === 0 ? "0" : Math.abs(x) >= 1000 || Math.abs(x) < 0.001 ? x.toExponential(1) : String(+x.toPrecision(3));
const bytes = (n) => n >= 2 ** 30 ? (n / 2 ** 30).toFixed(1) + " GiB" : (n / 2 ** 20).toFixed(0) + " MiB";
const duration = (s) => s >= 3600 ? (s / 3600).toFixed(1) + " h" : s >= 60 ? (s / 60).toFixed(1) + " min" : s.toFixed(0) + " s";

// An exponential mean over a twentieth of the rounds.
function smooth(values) {
  const share = 1 / Math.max(1, values.length / 20);
  let mean = null;
  return values.map((v) => (v === null ? mean : (mean = mean === null ? v : mean + share * (v - mean))));
}

function draw(id, x, series) {
  const svg = $(id), width = svg.clientWidth || 420, height = 210, left = 54, right = 8, top = 20, bottom = 22;
  const known = series.flatMap((s) => s.values.filter((v) => v !== null));
  svg.replaceChildren();
  if (!known.length) return;
  let low = Math.min(...known), high = Math.max(...known);
  if (low === high) { low -= Math.abs(low) / 20 || 0.5; high += Math.abs(high) / 20 || 0.5; }
  const first = x[0], last = x[x.length - 1];
  const px = (v) => left + (width - left - right) * (last > first ? (v - first) / (last - first) : 0.5);
  const py = (v) => top + (height - top - bottom) * (high - v) / (high - low);
  for (let k = 0; k <= 4; k++) {
    const value = low + (high - low) * k / 4, y = py(value);
    svg.append(make("line", "", { x1: left, x2: width - right, y1: y, y2: y, stroke: "var(--line)" }));
    svg.append(make("text", number(value), { x: left - 5, y: y + 4, "text-anchor": "end" }));
  }
  svg.append(make("text", String(first), { x: left, y: height - 6 }));
  svg.append(make("text", String(last), { x: width - right, y: height - 6, "text-anchor": "end" }));
  svg.append(make("text", "round", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }));
  series.forEach((one, k) => {
    const points = one.values.map((v, i) => (v === null ? null : `${px(x[i]).toFixed(1)},${py(v).toFixed(1)}`)).filter(Boolean);
    if (!points.length) return;  // such as validation, where nothing is held out
    const colour = one.colour || COLOURS[k % 3];
    svg.append(make("path", "", { d: points.length > 1 ? "M" + points.join("L") : `M${points[0]}h1`, fill: "none",
      stroke: colour, "stroke-width": one.faint ? 1 : 2, "stroke-opacity": one.faint ? 0.35 : 1 }));
  });
  let at = left;
  series.forEach((one, k) => {
    const value = one.values.findLast((v) => v !== null);
    const label = `${one.name} ${value === undefined ? "" : number(value)}`;
    const text = make("text", label, { x: at, y: 12, "data-name": one.name, "data-value": value ?? "" });
    text.style.fill = one.colour || COLOURS[k % 3];
    svg.append(text);
    at += 12 + 6.2 * label.length;
  });
}

function bar(name, share, said, isSlow = false) {
  const row = make("div", undefined, { class: isSlow ? "bar slow" : "bar" });
  row.append(make("span", name), make("progress", undefined, { max: 1, value: share }), make("span", said));
  return row;
}

function table(id, head, rows) {
  const line = make("tr");
  head.forEach((text) => line.append(make("th", text)));
  $(id).replaceChildren(line, ...rows.map((cells) => {
    const row = make("tr");
    cells.forEach((text) => row.append(make("td", text)));
    return row;
  }));
}

function show(s) {
  const running = s.workers.flatMap((w) => w.running.map(([name]) => name));
  const counts = Object.entries(running.reduce((all, name) => ({ ...all, [name]: (all[name] || 0) + 1 }), {}));
  const waits = counts.length ? "waits for " + counts.map(([name, n]) => `${n} × ${name}`).join(", ") : "between two tasks";
  $("said").textContent = s.ended ? `ended after ${duration(s.ended - s.began)}` : `runs for ${duration(s.now - s.began)}; ${waits}`;
  $("stages").replaceChildren(...s.stages.map((t) => {
    const rate = (t.done - t.before) / Math.max(t.at - t.began, 1e-9), left = (t.total - t.done) / rate;
    const parts = [`${t.done.toLocaleString("en")} of ${t.total.toLocaleString("en")} ${t.unit}`];
    if (rate > 0 && t.at > t.began) parts.push(`${number(rate)}/s`);
    if (rate > 0 && left > 0 && !s.ended) parts.push(`${duration(left)} left`);
    if (t.note) parts.push(t.note);
    return bar(t.name, t.total ? t.done / t.total : 1, parts.join(", "));
  }));

  $("chunks-section").hidden = !s.cells.length;
  $("chunks").replaceChildren(...s.cells.map((done) => make("i", undefined, { class: done >= 1 ? "done" : done > 0 ? "part" : "" })));
  const share = s.cells.reduce((sum, done) => sum + done, 0) / Math.max(s.cells.length, 1);
  $("chunks-said").textContent = `${s.n_chunks.toLocaleString("en")} chunks, ${(100 * share).toFixed(0)} % done` +
    (s.n_chunks > s.cells.length ? "; a square stands for several" : "");
  $("skipped-section").hidden = !s.n_skipped && !s.skipped.length;
  $("skipped-said").textContent = `${s.n_skipped.toLocaleString("en")} in all; the last ${s.skipped.length} of this run`;
  table("skipped", ["image", "reason"], s.skipped.toReversed());

  const r = s.rounds, log = (v) => v.map((x) => (x > 0 ? Math.log10(x) : null));
  document.querySelectorAll(".training").forEach((node) => { node.hidden = !s.n_rounds; });
  draw("loss", r.round, [{ name: "each", values: r.loss, faint: true }, { name: "smoothed", values: smooth(r.loss), colour: COLOURS[0] }]);
  draw("accuracy", r.round, [{ name: "train", values: r.train_accuracy }, { name: "validation", values: r.validation_accuracy }]);
  draw("ratio", r.round, [{ name: "update / weight", values: log(r.update_ratio) }]);
  draw("spread", r.round, [{ name: "spread", values: r.spread }]);
  draw("seconds", r.round, [{ name: "steps", values: r.step_s }, { name: "averaging", values: r.average_s }, { name: "waiting", values: r.wait_s }]);
  const most = Math.max(...s.steps.map((t) => t.step), 1e-9);
  const middle = s.steps.map((t) => t.step).sort((a, b) => a - b)[Math.floor(s.steps.length / 2)];
  const losses = s.shard_loss.map((loss, shard) => [shard, loss]).filter(([, loss]) => loss !== null);
  const highest = Math.max(...losses.map(([, loss]) => loss), 1e-9);
  $("shard-loss-said").textContent = "of the last round" + most_of(losses.length, "highest");
  $("shard-loss").replaceChildren(...losses.sort((a, b) => losses.length > MOST_BARS ? b[1] - a[1] : 0).slice(0, MOST_BARS).map(
    ([shard, loss]) => bar(`shard ${shard}`, loss / highest, number(loss))));
  $("tasks-said").textContent = "seconds of its shards' steps (bar), of waiting for the slowest task, and until the average is there; means of 20 rounds" + most_of(s.steps.length, "slowest");
  $("tasks").replaceChildren(...s.steps.sort((a, b) => s.steps.length > MOST_BARS ? b.step - a.step : 0).slice(0, MOST_BARS).map((t) => bar(
    `task ${t.group}`, t.step / most, `${t.step.toFixed(3)}, ${t.wait.toFixed(3)}, ${t.average.toFixed(3)} on ${t.worker}`,
    s.steps.length > 2 && t.step > 1.5 * middle)));

  table("workers", ["worker", "memory", "processor", "tasks", "runs"], s.workers.map((w) => [
    w.status === "running" ? w.address : `${w.address} (${w.status})`, bytes(w.memory) + (w.limit ? ` of ${bytes(w.limit)}` : ""),
    `${w.cpu.toFixed(0)} %`, String(w.waiting), w.running.map(([name, t]) => `${name} ${t.toFixed(1)} s`).join(", ") || "–"]));
  $("changes").replaceChildren(...s.changes.slice(-8).toReversed().map(([at, what, worker]) =>
    make("li", `${new Date(1000 * at).toLocaleTimeString("en-GB")} ${worker} ${what}`)));
}

async function ask() {
  let state = null;
  try {
    const answer = await fetch("live.json");
    state = await answer.json();
  } catch (error) {
    $("said").textContent = "The scheduler does not answer any more: the run has ended, or is lost. What is shown was so at the last.";
  }
  setTimeout(ask, EVERY_MS);
  if (state) show(state);
}
ask();
