// The live status page: reads /metrics once a second and draws the last two minutes.

import { alertUser, byId, element } from "./dom.js";
import { parseMetrics, summarize } from "./metrics.js";
import { KeyNeededError, readMetrics } from "./server.js";
import { setTheme } from "./settings.js";
import { loadSettings, saveKey } from "./storage.js";

const INTERVAL_MS = 1000;
const NUM_POINTS = 120;
const SVG = "http://www.w3.org/2000/svg";
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const perSecond = (rate) => (rate < 10 ? rate.toFixed(1) : rate.toFixed(0));
const TILES = [
  { name: "running", title: "Running", hint: "sequences in the batch", drawn: true },
  { name: "waiting", title: "Waiting", hint: "sequences in the queue", drawn: true },
  { name: "cache", title: "Cache in use", hint: "share of pages", show: percent, drawn: true, top: 1 },
  { name: "generation", title: "Generated", hint: "tokens per second", show: perSecond, drawn: true },
  { name: "prompt", title: "Prompts", hint: "tokens computed per second", show: perSecond, drawn: true },
  { name: "hits", title: "Prefix cache", hint: "prompt tokens found, since start", show: percent },
  { name: "accepted", title: "Draft", hint: "guesses that came true, since start", show: percent },
  { name: "finished", title: "Answered", hint: "requests since start" },
  { name: "preemptions", title: "Preempted", hint: "put back for lack of pages" },
  { name: "failures", title: "Failed", hint: "given up by the engine" },
];

class Tile {
  constructor({ title, hint, show = String, drawn = false, top = 0 }) {
    Object.assign(this, { show, top, points: [] });
    this.value = element("dd", "value", "–");
    this.element = element("div", "tile", element("dt", "", title, element("span", "hint", hint)), this.value);
    if (!drawn) return;
    this.line = document.createElementNS(SVG, "polyline");
    const graph = document.createElementNS(SVG, "svg");
    graph.setAttribute("viewBox", `0 0 ${NUM_POINTS - 1} 30`);
    graph.setAttribute("preserveAspectRatio", "none");
    graph.setAttribute("aria-hidden", "true");
    graph.append(this.line);
    this.value.after(element("dd", "graph", graph));
  }
  set(value) {
    this.value.textContent = value === null ? "–" : this.show(value);
    if (!this.line) return;
    this.points = [...this.points, value ?? 0].slice(-NUM_POINTS);
    const top = this.top || Math.max(1, ...this.points);
    const left = NUM_POINTS - this.points.length;
    this.line.setAttribute("points", this.points.map((y, i) => `${left + i},${29 - (28 * y) / top}`).join(" "));
  }
}

const tiles = new Map(TILES.map((tile) => [tile.name, new Tile(tile)]));
let before = null,
  at = 0;

async function read() {
  try {
    const values = parseMetrics(await readMetrics());
    const now = performance.now() / 1000;
    const summary = summarize(values, before, now - at);
    [before, at] = [values, now];
    for (const [name, tile] of tiles) tile.set(summary[name]);
    say(summary.up ? "The engine runs." : "The engine does not run.", summary.up);
    alertUser("");
    byId("key-form").hidden = true;
  } catch (error) {
    say("No answer.", false);
    alertUser(error.message);
    if (error instanceof KeyNeededError) {
      byId("key-form").hidden = false;
      return;
    }
  }
  setTimeout(read, INTERVAL_MS);
}

// Said once, not every second.
function say(text, good) {
  if (byId("state").textContent !== text) byId("state").textContent = text;
  byId("state").classList.toggle("bad", !good);
}

byId("key-form").onsubmit = (event) => {
  event.preventDefault();
  saveKey(byId("key").value.trim());
  read();
};
setTheme(loadSettings().theme);
byId("tiles").append(...[...tiles.values()].map((tile) => tile.element));
read();
