// The tokens of an answer one by one, coloured by their probability or by whether a draft had guessed them. One token
// is chosen with the arrow keys or a click; what else could have stood there is shown below.

import { element } from "./dom.js";
import { ExpertMap } from "./experts.js";

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1 %" : `${share.toFixed(share < 9.95 ? 1 : 0)} %`;
};
// Whitespace that would be invisible gets a sign.
const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const visible = (text) => (text.trim() ? text : text.replace(/[ \n\t]/g, (space) => SIGNS[space]) || "∅");

// 0 (surprising) to 4 (nearly certain).
export function certainty(logprob) {
  const share = Math.exp(logprob);
  return [0.05, 0.25, 0.6, 0.95].filter((bound) => share >= bound).length;
}

export class TokenBox {
  // `mode` is "probability", "drafted" or "experts".
  constructor(mode) {
    this.mode = mode;
    this.tokens = [];
    this.chosen = -1;
    this.list = element("div", "tokens");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", "Tokens of the answer");
    this.list.onkeydown = (event) => this.#move(event);
    this.list.onclick = (event) => this.#choose([...this.list.querySelectorAll("[role=option]")].indexOf(event.target));
    this.legend = element("p", "legend");
    this.detail = element("div", "alternatives");
    this.detail.setAttribute("aria-live", "polite");
    this.element = element("div", "token-box", this.legend, this.list, this.detail);
    this.map = mode === "experts" ? new ExpertMap() : null;
    if (this.map) this.element.append(this.map.element);
  }

  // Tokens only ever get more.
  set(tokens) {
    for (const token of tokens.slice(this.tokens.length)) {
      const option = element("span", this.#className(token), token.text);
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.tabIndex = this.tokens.length ? -1 : 0;
      this.tokens.push(token);
      this.list.append(option);
      if (token.text.includes("\n")) this.list.append(element("br"));
    }
    this.#explain();
  }

  #className(token) {
    if (this.mode === "experts") return "token";
    return this.mode === "drafted"
      ? `token ${token.drafted ? "drafted" : "computed"}`
      : `token p${certainty(token.logprob)}`;
  }

  #explain() {
    if (this.map) {
      this.map.draw(this.tokens, this.chosen);
    } else if (this.mode === "drafted") {
      const drafted = this.tokens.filter((token) => token.drafted).length;
      this.legend.replaceChildren(
        element("span", "token drafted", "guessed by the draft"),
        " ",
        element("span", "token computed", "by the model alone"),
        ` ${drafted} of ${this.tokens.length} tokens were guessed.`,
      );
    } else {
      const names = ["below 5 %", "5 to 25 %", "25 to 60 %", "60 to 95 %", "above"];
      this.legend.replaceChildren(...names.flatMap((name, i) => [element("span", `token p${i}`, name), " "]));
    }
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const options = [...this.list.querySelectorAll("[role=option]")];
    const at = options.indexOf(document.activeElement);
    const next = event.key === "Home" ? 0 : event.key === "End" ? options.length - 1 : step && at + step;
    if (next === undefined) return;
    event.preventDefault();
    this.#choose(next);
  }

  #choose(index) {
    const options = this.list.querySelectorAll("[role=option]");
    if (!options[index]) return;
    for (const option of options) {
      option.tabIndex = -1;
      option.setAttribute("aria-selected", "false");
    }
    options[index].tabIndex = 0;
    options[index].setAttribute("aria-selected", "true");
    options[index].focus();
    const { text, logprob, drafted, top } = this.tokens[index];
    const rows = top.map(([other, score]) => {
      const bar = element("span", "bar");
      bar.style.width = `${Math.max(1, 100 * Math.exp(score))}%`;
      return element(
        "li",
        other === text ? "chosen" : "",
        element("code", "", visible(other)),
        element("span", "share", percent(score)),
        bar,
      );
    });
    const source = drafted ? ", guessed by the draft" : "";
    const title = `Token ${index + 1}: “${visible(text)}”, ${percent(logprob)}${source}`;
    this.detail.replaceChildren(element("p", "", title), element("ul", "", ...rows));
    this.chosen = index;
    this.map?.draw(this.tokens, index);
  }
}
