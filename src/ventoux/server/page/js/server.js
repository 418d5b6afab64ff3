// The server's routes, as the page uses them. Paths are relative: the page also works below a proxy's prefix.

import { makeEventReader } from "./events.js";
import { loadKey } from "./storage.js";

export class KeyNeededError extends Error {}

export function headers() {
  const key = loadKey();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

async function failure(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    /* no JSON: the status has to do */
  }
  return response.status === 401 ? new KeyNeededError(message) : new Error(message);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

// The first served model: {id, max_model_len, ...}.
export async function findModel() {
  return (await (await ask("v1/models")).json()).data[0];
}

export async function readMetrics() {
  return (await ask("metrics")).text();
}

// Sends a chat request and calls onChunk for each chunk of its answer. Resolves to the server's warning, or "".
export async function streamChat(body, signal, onChunk) {
  const response = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  let finished = false;
  const read = makeEventReader((data) => {
    if (data === "[DONE]") {
      finished = true;
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    onChunk(chunk);
  });
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    read(decoder.decode(part.value, { stream: true }));
  }
  if (!finished) throw new Error("The connection ended before the answer did.");
  return response.headers.get("x-warning") || "";
}
