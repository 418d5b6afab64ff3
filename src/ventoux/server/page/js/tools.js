// The tools that models may call here: a calculator, and those that the person at the page describes. A described tool
// is answered by its own JavaScript, which runs in a worker without network, or by the person.

import { calculate } from "./calculator.js";

const SECONDS = 10;
const LONGEST_RESULT = 100000;

export const CALCULATOR = {
  name: "my_calculator",
  description: "A calculator that can evaluate a mathematical expression.",
  parameters: {
    type: "object",
    properties: { expression: { type: "string", description: "The mathematical expression to evaluate." } },
    required: ["expression"],
  },
};

// What requests offer: a tool of one's own takes the place of the calculator if it has its name.
export function offeredTools(userTools) {
  const own = userTools.map((tool) => tool.definition);
  const all = own.some((tool) => tool.name === CALCULATOR.name) ? own : [CALCULATOR, ...own];
  return all.map((definition) => ({ type: "function", function: definition }));
}

// A function's description as OpenAI has it, with or without the {type, function} around it. Throws what is wrong.
export function parseDefinition(text) {
  let given;
  try {
    given = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}`);
  }
  if (given?.type === "function" && given.function) given = given.function;
  if (!/^[a-zA-Z0-9_-]{1,64}$/.test(given?.name ?? "")) {
    throw new Error('"name" must be 1 to 64 letters, digits, "_" or "-".');
  }
  const { name, description = "", parameters = { type: "object", properties: {} } } = given;
  if (typeof description !== "string") throw new Error('"description" must be text.');
  if (typeof parameters !== "object" || parameters?.type !== "object") {
    throw new Error('"parameters" must be a JSON schema of type "object".');
  }
  return { name, description, parameters };
}

// The result of a call as text; what goes wrong is a result too, so that the model can do something about it.
// `ask(call)` resolves to what the person answers. Rejects only when `signal` aborts.
export async function runTool(call, userTools, ask, signal) {
  const own = userTools.find((tool) => tool.definition.name === call.name);
  if (own && !own.code.trim()) return ask(call);
  try {
    const given = JSON.parse(call.arguments);
    if (own) return await runInWorker(own.code, given, signal);
    if (call.name === CALCULATOR.name) return calculate(given.expression);
    throw new Error(`there is no tool named ${call.name}`);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return `error: ${error.message}`;
  }
}

let policy = null;

// Browsers with trusted types start workers from addresses that a policy has approved only.
function workerAddress() {
  const address = new URL("tool-worker.js", import.meta.url).href;
  policy ??= globalThis.trustedTypes?.createPolicy("ventoux", {
    createScriptURL(given) {
      if (given !== address) throw new TypeError("no worker of this page");
      return given;
    },
  });
  return policy ? policy.createScriptURL(address) : address;
}

function runInWorker(code, given, signal) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(workerAddress());
    const stop = (settle, value) => {
      clearTimeout(timer);
      worker.terminate();
      settle(value);
    };
    const timer = setTimeout(() => stop(reject, new Error(`no result after ${SECONDS} seconds`)), SECONDS * 1000);
    worker.onmessage = ({ data }) => {
      if (data.error !== undefined) stop(reject, new Error(data.error));
      else if (data.result.length > LONGEST_RESULT) stop(reject, new Error("the result is too long"));
      else stop(resolve, data.result);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      stop(reject, new Error(event.message || "the tool failed"));
    };
    signal.addEventListener("abort", () => stop(reject, signal.reason), { once: true });
    worker.postMessage({ code, given });
  });
}
