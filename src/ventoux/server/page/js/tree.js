// A conversation is a tree: editing a question or asking again for an answer makes a sibling, and nothing is lost.
//
// conversation: {id, title, created, updated, system, next, leaf, nodes}. `nodes` maps ids, whole numbers that count
// up, to {id, parent, role, ...}; `leaf` is the last node of the branch that is shown. By role a node has:
//   user:      content, images (data URLs)
//   assistant: content, reasoning, reasoningSeconds, calls [{id, name, arguments}], usage, seconds, firstSeconds,
//              tokens (see answer.js), finish, note
//   tool:      callId, name, content

// randomUUID is for secure origins only, and servers in a local network are none.
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16).padStart(8, "0")).join("");
}

export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system, next: 1, leaf: null, nodes: {} };
}

export function append(conversation, parent, fields) {
  const node = { id: conversation.next++, parent, ...fields };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  conversation.updated = Date.now();
  return node;
}

// The nodes from the first question to `leaf`.
export function path(conversation, leaf = conversation.leaf) {
  const nodes = [];
  for (let node = conversation.nodes[leaf]; node; node = conversation.nodes[node.parent]) nodes.push(node);
  return nodes.reverse();
}

function children(conversation, parent) {
  return Object.values(conversation.nodes)
    .filter((node) => node.parent === parent)
    .sort((a, b) => a.id - b.id);
}

// The versions of a node, itself among them, oldest first.
export function versions(conversation, node) {
  return children(conversation, node.parent);
}

// Shows the branch through `node`, as far as it was last continued.
export function select(conversation, node) {
  let last = node;
  for (let below = children(conversation, last.id); below.length; below = children(conversation, last.id)) {
    last = below[below.length - 1];
  }
  conversation.leaf = last.id;
}

// Takes a node without descendants away again.
export function remove(conversation, node) {
  delete conversation.nodes[node.id];
  const others = children(conversation, node.parent);
  if (others.length) select(conversation, others[others.length - 1]);
  else conversation.leaf = node.parent;
}

export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = path(conversation).find((node) => node.role === "user");
  if (!first) return "New chat";
  const line = first.content.trim().split("\n")[0];
  return line ? (line.length > 60 ? `${line.slice(0, 59)}…` : line) : "Image";
}

// What the server is sent: the branch up to `leaf` in the form of chat completions. An answer that was stopped may have
// calls without results, which servers refuse: those are left out.
export function toMessages(conversation, leaf) {
  const nodes = path(conversation, leaf);
  const answered = new Set(nodes.filter((node) => node.role === "tool").map((node) => node.callId));
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system.trim() }] : [];
  for (const node of nodes) {
    const message = toMessage(node, answered);
    if (message) messages.push(message);
  }
  return messages;
}

function toMessage(node, answered) {
  if (node.role === "tool") {
    return { role: "tool", tool_call_id: node.callId, name: node.name, content: node.content };
  }
  if (node.role === "user") {
    if (!node.images.length) return { role: "user", content: node.content };
    const images = node.images.map((url) => ({ type: "image_url", image_url: { url } }));
    return { role: "user", content: node.content ? [{ type: "text", text: node.content }, ...images] : images };
  }
  const message = { role: "assistant", content: node.content };
  if (node.reasoning) message.reasoning = node.reasoning;
  const calls = node.calls.filter((call) => answered.has(call.id));
  if (calls.length) {
    message.tool_calls = calls.map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text },
    }));
  }
  return node.content || node.reasoning || calls.length ? message : null;
}
