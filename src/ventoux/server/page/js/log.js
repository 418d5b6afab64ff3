// The branch of a conversation that is shown, from its first question to its last answer.

import { byId } from "./dom.js";
import { AnswerMessage, UserMessage } from "./message.js";
import { path, versions } from "./tree.js";

// A reader who is this near to the end wants to follow it.
const NEAR_END = 120;

export class Log {
  constructor(actions) {
    this.actions = actions;
    this.conversation = null;
    this.views = new Map();
  }

  // `live` is the node that is being written, `busy` whether anything runs.
  show(conversation, { live = null, busy = false, colors = "none" }) {
    if (conversation !== this.conversation) this.views.clear();
    this.conversation = conversation;
    this.state = { live, busy, colors };
    const nodes = path(conversation).filter((node) => node.role !== "tool");
    const elements = nodes.map((node) => this.#view(node).element);
    this.#following(() => {
      const root = byId("log");
      // Elements that stay are not touched: a focus inside them, or a half-written edit, stays too.
      [...root.children].forEach((child) => {
        if (!elements.includes(child)) child.remove();
      });
      elements.forEach((made, i) => {
        if (root.children[i] !== made) root.insertBefore(made, root.children[i] ?? null);
      });
      nodes.forEach((node) => this.#update(node));
    });
  }

  // Brings the message of one node up to date, while it streams.
  refresh(node) {
    this.#following(() => this.#update(node));
  }

  view(node) {
    return this.views.get(node.id);
  }

  // The button that was pressed has gone with its version: the keyboard stays at the same one of the other version.
  focusVersions(node, label) {
    const buttons = [...this.view(node).element.querySelectorAll(".versions button:not(:disabled)")];
    (buttons.find((one) => one.ariaLabel === label) ?? buttons[0])?.focus();
  }

  toEnd() {
    byId("scroll").scrollTop = byId("scroll").scrollHeight;
  }

  #view(node) {
    if (!this.views.has(node.id)) {
      const made = node.role === "user" ? new UserMessage(node, this.actions) : new AnswerMessage(node, this.actions);
      this.views.set(node.id, made);
    }
    return this.views.get(node.id);
  }

  #update(node) {
    const results = new Map(
      path(this.conversation)
        .filter((one) => one.role === "tool")
        .map((one) => [one.callId, one.content]),
    );
    const { live, busy, colors } = this.state;
    this.#view(node).update({
      versions: versions(this.conversation, node),
      busy,
      colors,
      live: live === node,
      results,
    });
  }

  #following(change) {
    const scroll = byId("scroll");
    const follow = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_END;
    change();
    if (follow) this.toEnd();
  }
}
