// Which experts the tokens of an answer used: layers down, experts across, the darker the more often; those of one
// chosen token are framed.

import { element } from "./dom.js";

const CELL = { width: 12, height: 14 };
const MAX_WIDTH = 768;

// How often each expert of each layer was used: [layers][experts].
export function countExperts(tokens) {
  const highest = (layers) => Math.max(...layers.map((layer) => Math.max(...layer)));
  const numExperts = 1 + tokens.reduce((most, token) => Math.max(most, highest(token.experts)), 0);
  const counts = tokens[0].experts.map(() => new Array(numExperts).fill(0));
  for (const { experts } of tokens)
    experts.forEach((layer, i) =>
      layer.forEach((expert) => {
        counts[i][expert]++;
      }),
    );
  return counts;
}

export class ExpertMap {
  constructor() {
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.caption = element("figcaption", "hint");
    this.element = element("figure", "experts", this.canvas, this.caption);
  }

  // `chosen` is the index of a token, or -1.
  draw(tokens, chosen = -1) {
    const counts = countExperts(tokens);
    const most = Math.max(...counts.flat());
    const width = Math.min(CELL.width, Math.floor(MAX_WIDTH / counts[0].length) || 1),
      { height } = CELL;
    this.canvas.width = width * counts[0].length;
    this.canvas.height = height * counts.length;
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(this.element);
    const [ink, frame] = ["--accent", "--bad"].map((name) => style.getPropertyValue(name));
    counts.forEach((layer, y) =>
      layer.forEach((count, x) => {
        context.globalAlpha = 0.06 + 0.94 * (count / most);
        context.fillStyle = ink;
        context.fillRect(x * width, y * height, width - 1, height - 1);
      }),
    );
    context.globalAlpha = 1;
    context.strokeStyle = frame;
    context.lineWidth = 2;
    tokens[chosen]?.experts.forEach((layer, y) =>
      layer.forEach((x) => context.strokeRect(x * width + 1, y * height + 1, width - 3, height - 3)),
    );
    this.#say(counts, tokens, chosen);
  }

  // The same in words.
  #say(counts, tokens, chosen) {
    const favourite = counts.map((layer, y) => `${y + 1}: ${layer.indexOf(Math.max(...layer))}`);
    const own = tokens[chosen]?.experts.map((layer, y) => `${y + 1}: ${layer.join(" and ")}`);
    this.canvas.setAttribute(
      "aria-label",
      own
        ? `Experts of the chosen token, by layer: ${own.join("; ")}.`
        : `The expert used most, by layer: ${favourite.join("; ")}.`,
    );
    this.caption.textContent =
      `Layers down (${counts.length}), experts across (0 to ${counts[0].length - 1}); darker: used by ` +
      `more of the ${tokens.length} tokens. ${own ? "Framed: the chosen token's." : "Choose a token to see its own."}`;
  }
}
