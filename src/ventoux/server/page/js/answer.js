// Chunks of a streamed answer, folded into an assistant node of a conversation.

export const emptyAnswer = () => ({
  role: "assistant",
  content: "",
  reasoning: "",
  reasoningSeconds: 0,
  calls: [],
  usage: null,
  seconds: 0,
  firstSeconds: 0,
  tokens: [],
  finish: "",
  note: "",
});

// Folds chunks into `node`; `now` gives seconds. The clock of the speed starts with the first token.
export function makeFold(node, now) {
  const start = now();
  let first = 0,
    reasonedFrom = 0;
  return (chunk) => {
    if (chunk.usage) node.usage = counts(chunk.usage);
    const choice = chunk.choices[0];
    if (!choice) return;
    const { delta, logprobs, finish_reason: finish } = choice;
    if (!first && (delta.content || delta.reasoning || delta.tool_calls || logprobs)) {
      first = now();
      node.firstSeconds = first - start;
    }
    if (first) node.seconds = now() - first;
    if (delta.reasoning) {
      reasonedFrom ||= first;
      node.reasoning += delta.reasoning;
    }
    if (delta.content) node.content += delta.content;
    for (const part of delta.tool_calls || []) addCall(node, part);
    // Until something else comes, the model still thinks.
    if (node.reasoning && !node.content && !node.calls.length) node.reasoningSeconds = now() - reasonedFrom;
    for (const entry of logprobs?.content || []) node.tokens.push(token(entry));
    if (finish) node.finish = finish;
  };
}

function addCall(node, part) {
  if (part.id) {
    node.calls[part.index] = { id: part.id, name: part.function.name, arguments: part.function.arguments };
  } else {
    node.calls[part.index].arguments += part.function.arguments;
  }
}

function counts(usage) {
  const details = usage.completion_tokens_details;
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details.cached_tokens,
    completion: usage.completion_tokens,
    drafted: details.drafted_tokens,
    accepted: details.accepted_tokens,
  };
}

const token = ({ token: text, logprob, drafted = false, experts = [], top_logprobs: top }) => ({
  text,
  logprob,
  drafted,
  experts,
  top: top.map((other) => [other.token, other.logprob]),
});

// One line about an answer: what was written, how fast, what was read and guessed.
export function statistics(node) {
  const { usage, seconds, firstSeconds } = node;
  if (!usage) return "";
  const after = usage.completion - 1;
  const speed = seconds > 0 && after > 0 ? `, ${(after / seconds).toFixed(1)} per second` : "";
  const parts = [`${usage.completion} tokens${speed}`];
  if (firstSeconds > 0) parts.push(`first after ${firstSeconds.toFixed(firstSeconds < 10 ? 2 : 0)} s`);
  parts.push(`prompt ${usage.prompt}${usage.cached ? `, ${usage.cached} cached` : ""}`);
  if (usage.drafted) parts.push(`drafted ${usage.accepted} of ${usage.drafted}`);
  return parts.join(" · ");
}
