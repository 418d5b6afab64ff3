// Tool calls as cards: what was asked, and what came back.

import { button, element } from "./dom.js";
import { CALCULATOR } from "./tools.js";

function readable(call) {
  try {
    const given = JSON.parse(call.arguments);
    if (call.name === CALCULATOR.name && typeof given.expression === "string") return given.expression;
    return JSON.stringify(given, null, 1).replace(/\n\s*/g, " ");
  } catch {
    return call.arguments;
  }
}

export class CallCard {
  constructor() {
    this.name = element("strong");
    this.given = element("code");
    this.result = element("div", "result");
    this.result.hidden = true;
    this.element = element("div", "card", element("div", "call", this.name, " ", this.given), this.result);
    this.element.setAttribute("role", "group");
  }
  update(call, result) {
    this.name.textContent = call.name;
    this.element.setAttribute("aria-label", `Tool call: ${call.name}`);
    this.given.textContent = readable(call);
    if (result === undefined) return;
    this.result.hidden = false;
    this.result.classList.toggle("failed", result.startsWith("error: "));
    this.result.replaceChildren(element("span", "label", "Result"), " ", element("code", "", result));
  }

  // Lets the person answer the call. Resolves to the text; rejects when `signal` aborts.
  ask(signal) {
    return new Promise((resolve, reject) => {
      const field = element("textarea");
      field.rows = 2;
      field.setAttribute("aria-label", `Result of ${this.name.textContent}`);
      const done = (settle, value) => {
        form.remove();
        settle(value);
      };
      const form = element(
        "form",
        "ask",
        field,
        button("Send result", () => done(resolve, field.value), { className: "primary" }),
      );
      form.onsubmit = (event) => event.preventDefault();
      signal.addEventListener("abort", () => done(reject, signal.reason), { once: true });
      this.element.append(form);
      field.focus();
    });
  }
}
