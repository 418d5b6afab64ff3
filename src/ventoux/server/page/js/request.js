// Settings -> the body of a chat request.

import { BUNDLED_MODEL } from "./suggestions.js";
import { offeredTools } from "./tools.js";

// Every sampling field that the settings show. `fallback` says what happens if it is left empty.
export const SAMPLING = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, fallback: "0.1, or 0.7 with reasoning" },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, fallback: "1" },
  { name: "top_k", label: "Top k", min: 0, step: 1, fallback: "all" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, fallback: "0" },
  { name: "max_tokens", label: "Longest answer (tokens)", min: 1, step: 1, fallback: "what fits" },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, fallback: "0" },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, fallback: "0" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.1, max: 2, step: 0.05, fallback: "1" },
  { name: "seed", label: "Seed", min: 0, step: 1, fallback: "random" },
];
// What is recommended for the family; the bundled model is too small to be let wander.
const automaticTemperature = (model, effort) => (effort === "none" || model.id === BUNDLED_MODEL ? 0.1 : 0.7);
const NUM_ALTERNATIVES = 5;

export function requestBody(model, messages, settings) {
  const body = {
    model: model.id,
    messages,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    reasoning_effort: settings.effort,
    temperature: automaticTemperature(model, settings.effort),
    ...settings.sampling,
  };
  if (settings.tools) body.tools = offeredTools(settings.userTools);
  if (settings.colors !== "none") {
    Object.assign(body, { logprobs: true, top_logprobs: NUM_ALTERNATIVES, return_drafted: true });
    // Only when they are looked at: on large models these are hundreds of numbers a token.
    if (settings.colors === "experts") body.return_routed_experts = true;
  }
  return body;
}
