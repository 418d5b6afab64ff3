// The conversation at hand: asking, answering tool calls, stopping, asking again, and branches.

import { emptyAnswer, makeFold } from "./answer.js";
import { requestBody } from "./request.js";
import { findModel, streamChat } from "./server.js";
import { runTool } from "./tools.js";
import { append, newConversation, remove, select, toMessages } from "./tree.js";

// Answers in a row that a model may spend on tool calls.
const MAX_ROUNDS = 10;
const SAVE_EVERY_MS = 2000;
const DRAW_EVERY_MS = 60;
// Share of the time that may go into drawing: a long answer takes longer to draw.
const DRAWING = 0.25;

export class Session {
  // `page` is told what happens: changed() when messages come or go, growing(node) while one is written,
  // askResult(node, call, signal) when a person answers a tool call, connected(model), failed(error).
  constructor(store, settings, page) {
    this.store = store;
    this.settings = settings;
    this.page = page;
    this.model = null;
    this.running = null;
    this.live = null;
    this.discarded = new WeakSet();
    this.open(newConversation(settings.system));
  }

  get busy() {
    return this.running !== null;
  }

  open(conversation) {
    this.stop();
    this.running = this.live = null;
    this.conversation = conversation;
  }

  async connect() {
    if (this.model) return;
    this.model = await findModel();
    this.page.connected(this.model);
  }

  stop() {
    this.running?.abort(new DOMException("stopped", "AbortError"));
  }

  // Takes a conversation away for good, also if an answer in it still has to end.
  async discard(conversation) {
    this.discarded.add(conversation);
    await this.store.delete(conversation.id);
  }

  // These three resolve to whether something of an answer was kept; if not, the conversation is as it was before.
  async send(content, images) {
    const { conversation } = this;
    const node = append(conversation, conversation.leaf, { role: "user", content, images });
    return this.#keepIf(await this.#answer(conversation, node.id), conversation, node);
  }
  async edit(before, content) {
    const { conversation } = this;
    const node = append(conversation, before.parent, { role: "user", content, images: before.images });
    return this.#keepIf(await this.#answer(conversation, node.id), conversation, node, before);
  }
  retry(node) {
    return this.#answer(this.conversation, node.parent, node);
  }

  async #keepIf(answered, conversation, node, before = null) {
    if (!answered) {
      remove(conversation, node);
      if (before) select(conversation, before);
      await this.#changed(conversation);
    }
    return answered;
  }

  async #answer(conversation, parent, before = null) {
    this.stop();
    const running = (this.running = new AbortController());
    let kept = 0,
      node = null;
    try {
      await this.connect();
      for (let round = 0; round < MAX_ROUNDS; round++) {
        node = append(conversation, parent, emptyAnswer());
        this.live = node;
        await this.#changed(conversation);
        await this.#stream(conversation, node, running.signal);
        kept++;
        this.live = null;
        if (!node.calls.length) break;
        parent = await this.#runTools(conversation, node, running.signal);
      }
    } catch (error) {
      if (node && this.#cut(conversation, node, error)) kept++;
      if (!kept && before) select(conversation, before);
      if (error.name !== "AbortError") this.page.failed(error);
    } finally {
      if (this.running === running) this.running = this.live = null;
      await this.#changed(conversation);
    }
    return kept > 0;
  }

  // What had come before an answer was cut is kept; half a call is not. Returns whether anything is left.
  #cut(conversation, node, error) {
    node.note = error.name === "AbortError" ? "Stopped." : error.message;
    if (!node.finish) node.calls = [];
    if (node.content || node.reasoning || node.calls.length) return true;
    remove(conversation, node);
    return false;
  }

  async #stream(conversation, node, signal) {
    const body = requestBody(this.model, toMessages(conversation, node.parent), this.settings);
    const fold = makeFold(node, () => performance.now() / 1000);
    let due = 0,
      saved = performance.now();
    const warning = await streamChat(body, signal, (chunk) => {
      fold(chunk);
      const now = performance.now();
      if (now > due) {
        this.page.growing(node);
        const after = performance.now();
        due = after + Math.max(DRAW_EVERY_MS, (after - now) / DRAWING);
      }
      if (now - saved > SAVE_EVERY_MS) {
        saved = now;
        this.save(conversation);
      }
    });
    node.note = warning;
    this.page.growing(node);
  }

  // Appends the results of all calls of a node. Resolves to the id of the last one.
  async #runTools(conversation, node, signal) {
    let parent = node.id;
    for (const call of node.calls) {
      const ask = () => this.page.askResult(node, call, signal);
      const content = await runTool(call, this.settings.userTools, ask, signal);
      signal.throwIfAborted();
      parent = append(conversation, parent, { role: "tool", callId: call.id, name: call.name, content }).id;
      await this.#changed(conversation);
    }
    return parent;
  }

  async #changed(conversation) {
    conversation.updated = Date.now();
    await this.save(conversation);
    this.page.changed(conversation);
  }

  // A browser without room loses no answer: it stays on the screen.
  async save(conversation = this.conversation) {
    try {
      // Whose first question was refused has nothing to keep, though it was written down meanwhile.
      const keep = conversation.leaf !== null && !this.discarded.has(conversation);
      await (keep ? this.store.put(conversation) : this.store.delete(conversation.id));
    } catch (error) {
      this.page.failed(new Error(`The browser could not keep this chat: ${error.message}`));
    }
  }
}
