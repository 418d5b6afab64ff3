// One message on the screen. `update` brings it to what its node says now, while it streams and afterwards.

import { statistics } from "./answer.js";
import { CallCard } from "./cards.js";
import { button, copyText, element, picture } from "./dom.js";
import { MarkdownBox } from "./markdown.js";
import { TokenBox } from "./tokens.js";

// Earlier and later versions of a message, if there are any.
function versionSwitch(node, all, select) {
  if (all.length < 2) return [];
  const at = all.findIndex((one) => one.id === node.id);
  const to = (text, label, other) => {
    const made = button(text, () => select(other), { className: "quiet", label });
    made.disabled = !other;
    return made;
  };
  const where = element(
    "span",
    "versions",
    to("‹", "Earlier version", all[at - 1]),
    element("span", "", `${at + 1} / ${all.length}`),
    to("›", "Later version", all[at + 1]),
  );
  return [where];
}

export class UserMessage {
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.body = element("div", "bubble");
    this.tools = element("div", "tools");
    this.element = element("article", "message user", this.body, this.tools);
    this.element.setAttribute("aria-label", "You");
    this.#show();
  }
  update({ versions, busy }) {
    const edit = button("Edit", () => this.#edit(), { className: "quiet" });
    edit.disabled = busy;
    this.tools.replaceChildren(...versionSwitch(this.node, versions, this.actions.select), edit);
  }
  #show() {
    const { content, images } = this.node;
    const shown = images.map((url, i) => picture(url, `Image ${i + 1}`));
    this.body.replaceChildren(...(images.length ? [element("div", "images", ...shown)] : []));
    if (content) this.body.append(element("div", "plain", content));
    this.tools.hidden = false;
  }
  #edit() {
    const field = element("textarea");
    field.value = this.node.content;
    field.rows = Math.min(12, field.value.split("\n").length + 1);
    field.setAttribute("aria-label", "Edited message");
    const back = () => {
      this.#show();
      this.tools.lastChild.focus();
    };
    const form = element(
      "form",
      "edit",
      field,
      element(
        "div",
        "row",
        button("Cancel", back),
        button("Send", () => form.requestSubmit(), { className: "primary" }),
      ),
    );
    form.onsubmit = (event) => {
      event.preventDefault();
      this.#show();
      if (field.value.trim() || this.node.images.length) this.actions.edit(this.node, field.value.trim());
    };
    field.onkeydown = (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        back();
      }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    };
    this.body.lastChild?.classList.contains("plain") && this.body.lastChild.remove();
    this.body.append(form);
    this.tools.hidden = true;
    field.focus();
  }
}

export class AnswerMessage {
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.cards = [];
    this.reasoning = this.content = this.tokens = null;
    this.body = element("div", "answer");
    this.note = element("p", "note");
    this.meta = element("span", "stats");
    this.tools = element("div", "tools");
    this.element = element("article", "message model", this.body, this.note, this.tools);
    this.element.setAttribute("aria-label", "Model");
  }

  // `results` are the texts of tool nodes by call id; `colors` is "none", "probability", "drafted" or "experts".
  update({ versions, busy, live, results, colors }) {
    const { node } = this;
    this.element.classList.toggle("waiting", live);
    const recorded = node.tokens.length > 0 && (colors !== "experts" || node.tokens[0].experts.length > 0);
    if (colors !== "none" && recorded) this.#showTokens(colors);
    else this.#showText(live);
    node.calls.forEach((call, i) => {
      if (!this.cards[i]) this.body.append((this.cards[i] = new CallCard()).element);
      this.cards[i].update(call, results.get(call.id));
    });
    const unrecorded = colors !== "none" && !recorded && !live;
    const broken = live || node.finish || node.note ? "" : "This answer was interrupted.";
    const cut = node.finish === "length" ? "The answer was cut: there was no room for more tokens." : "";
    this.note.textContent = [node.note, broken, cut, unrecorded && "No token details were recorded: ask again to see them."]
      .filter(Boolean)
      .join(" ");
    this.note.hidden = !this.note.textContent;
    this.meta.textContent = statistics(node);
    const copy = button("Copy", () => copyText(node.content, copy), { className: "quiet" });
    copy.hidden = !node.content;
    const again = button("Retry", () => this.actions.retry(node), { className: "quiet" });
    again.disabled = busy;
    this.tools.replaceChildren(
      ...(live ? [] : [...versionSwitch(node, versions, this.actions.select), copy, again]),
      this.meta,
    );
  }

  ask(callId, signal) {
    return this.cards[this.node.calls.findIndex((call) => call.id === callId)].ask(signal);
  }

  #showTokens(mode) {
    if (this.tokens?.mode !== mode) {
      this.#clear();
      this.tokens = new TokenBox(mode);
      this.body.prepend(this.tokens.element);
    }
    this.tokens.set(this.node.tokens);
  }

  #showText(live) {
    const { node } = this;
    if (this.tokens) this.#clear();
    if (node.reasoning) {
      if (!this.reasoning) this.#addReasoning(live);
      this.reasoning.text.set(node.reasoning);
      const thinking = live && !node.content && !node.calls.length;
      const seconds = node.reasoningSeconds.toFixed(1);
      this.reasoning.summary.textContent = `${thinking ? "Reasoning…" : "Reasoned for"} ${seconds} s`;
      // Folded once the answer itself begins, and then left as the reader has it.
      if (!thinking && this.reasoning.fresh) {
        this.reasoning.fresh = false;
        this.reasoning.fold.open = false;
      }
    }
    if (node.content) {
      if (!this.content) {
        this.content = new MarkdownBox("content");
        if (this.reasoning) this.reasoning.fold.after(this.content.element);
        else this.body.prepend(this.content.element);
      }
      this.content.set(node.content);
    }
  }

  #addReasoning(live) {
    const summary = element("summary");
    const text = new MarkdownBox("thoughts");
    const fold = element("details", "reasoning", summary, text.element);
    fold.open = live;
    this.reasoning = { summary, text, fold, fresh: live };
    this.body.prepend(fold);
  }

  #clear() {
    for (const shown of [this.tokens?.element, this.reasoning?.fold, this.content?.element]) shown?.remove();
    this.tokens = this.reasoning = this.content = null;
  }
}
