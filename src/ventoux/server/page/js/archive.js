// Conversations as files. What is imported was written by anybody: it is rebuilt field by field, or refused.

import { newId } from "./tree.js";

const FORMAT = "ventoux-conversations";
const IMAGE = /^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$/;

export function toFile(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

// The conversations in a file's text, with new ids. Throws an Error that names what is wrong.
export function fromFile(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (data?.format !== FORMAT || data.version !== 1 || !Array.isArray(data.conversations)) {
    throw new Error("The file holds no conversations exported from here.");
  }
  return data.conversations.map(conversation);
}

function need(good, what) {
  if (!good) throw new Error(`The file is damaged: ${what}.`);
}
const isText = (value) => typeof value === "string";
const text = (value, what) => {
  need(isText(value), what);
  return value;
};
const number = (value) => (typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : 0);

function conversation(given) {
  need(given && typeof given === "object" && given.nodes && typeof given.nodes === "object", "a conversation is empty");
  const nodes = {};
  for (const one of Object.values(given.nodes)) {
    need(Number.isSafeInteger(one?.id) && one.id > 0 && !nodes[one.id], "an id is no number of its own");
    // Parents are older: so there can be no circle.
    need(one.parent === null || (Number.isSafeInteger(one.parent) && one.parent < one.id), "a message has no place");
    nodes[one.id] = { id: one.id, parent: one.parent, ...byRole(one) };
  }
  for (const node of Object.values(nodes)) need(node.parent === null || nodes[node.parent], "a message is missing");
  need(given.leaf === null || (Number.isSafeInteger(given.leaf) && nodes[given.leaf]), "its end is missing");
  return {
    id: newId(),
    title: isText(given.title) ? given.title.slice(0, 200) : "",
    created: number(given.created),
    updated: number(given.updated),
    system: isText(given.system) ? given.system : "",
    next: Math.max(0, ...Object.keys(nodes).map(Number)) + 1,
    leaf: given.leaf,
    nodes,
  };
}

function byRole(one) {
  if (one.role === "user") {
    need(Array.isArray(one.images) && one.images.every((url) => isText(url) && IMAGE.test(url)), "an image is none");
    return { role: "user", content: text(one.content, "a question has no text"), images: one.images };
  }
  if (one.role === "tool") {
    return {
      role: "tool",
      callId: text(one.callId, "a result has no call"),
      name: text(one.name, "a tool has no name"),
      content: text(one.content, "a result has no text"),
    };
  }
  need(one.role === "assistant" && Array.isArray(one.calls), "a message has no known role");
  return {
    role: "assistant",
    content: text(one.content, "an answer has no text"),
    reasoning: text(one.reasoning, "reasoning is no text"),
    reasoningSeconds: number(one.reasoningSeconds),
    calls: one.calls.map((call) => ({
      id: text(call?.id, "a call has no id"),
      name: text(call.name, "a call has no name"),
      arguments: text(call.arguments, "a call has no arguments"),
    })),
    usage: counts(one.usage),
    seconds: number(one.seconds),
    firstSeconds: number(one.firstSeconds),
    tokens: tokens(one.tokens),
    finish: isText(one.finish) ? one.finish : "",
    note: isText(one.note) ? one.note : "",
  };
}

function counts(usage) {
  if (!usage || typeof usage !== "object") return null;
  const names = ["prompt", "cached", "completion", "drafted", "accepted"];
  return Object.fromEntries(names.map((name) => [name, number(usage[name])]));
}

// Per layer a few expert numbers; real models have up to some hundred of them.
function experts(layers) {
  const isExpert = (expert) => Number.isSafeInteger(expert) && expert >= 0 && expert < 4096;
  need(
    Array.isArray(layers) && layers.every((layer) => Array.isArray(layer) && layer.every(isExpert)),
    "a token has odd experts",
  );
  return layers;
}

function tokens(given) {
  const found = Array.isArray(given) ? given.map(token) : [];
  need(new Set(found.map((one) => one.experts.length)).size < 2, "its tokens have different numbers of layers");
  return found;
}

function token(one) {
  need(Array.isArray(one?.top), "a token has no alternatives");
  const score = (value) => (typeof value === "number" && value <= 0 ? value : -9999);
  return {
    text: text(one.text, "a token has no text"),
    logprob: score(one.logprob),
    drafted: one.drafted === true,
    experts: experts(one.experts),
    top: one.top.map((other) => [text(other?.[0], "a token has no text"), score(other[1])]),
  };
}
