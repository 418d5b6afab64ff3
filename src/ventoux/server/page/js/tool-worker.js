// Runs the JavaScript of one tool call. This file is served with a policy of its own: code that the person at the page
// wrote may run here, and nothing here may use the network. Conversations are out of reach, too.
"use strict";

for (const name of ["indexedDB", "caches"]) Object.defineProperty(self, name, { value: undefined });

self.onmessage = async ({ data: { code, given } }) => {
  try {
    const AsyncFunction = (async () => {}).constructor;
    const result = await new AsyncFunction("args", `"use strict";\n${code}`)(given);
    self.postMessage({ result: typeof result === "string" ? result : (JSON.stringify(result) ?? "null") });
  } catch (error) {
    self.postMessage({ error: String(error?.message ?? error) });
  }
};
