// Prometheus text -> what the status page shows.

// Values by name, labels left out: of labelled series the sum.
export function parseMetrics(text) {
  const values = {};
  for (const line of text.split("\n")) {
    const found = /^(\w+)(?:\{[^}]*\})? (\S+)/.exec(line);
    if (found) values[found[1]] = (values[found[1]] ?? 0) + Number(found[2]);
  }
  return values;
}

// Two readings, `seconds` apart -> {name: number or null}. Shares are 0 to 1; null: there is nothing to tell.
export function summarize(now, before, seconds) {
  const value = (name) => now[`ventoux_${name}`] ?? 0;
  const rise = (name) => (before ? Math.max(0, value(name) - (before[`ventoux_${name}`] ?? 0)) : 0);
  const rate = (name) => (before && seconds > 0 ? rise(name) / seconds : null);
  const share = (part, whole) => (value(whole) > 0 ? value(part) / value(whole) : null);
  return {
    up: value("engine_up") === 1,
    running: value("num_requests_running"),
    waiting: value("num_requests_waiting"),
    cache: value("kv_cache_usage_perc"),
    prompt: rate("prompt_tokens_total"),
    generation: rate("generation_tokens_total"),
    hits: share("prefix_cache_hits_total", "prefix_cache_queries_total"),
    accepted: share("spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total"),
    finished: value("request_success_total"),
    preemptions: value("num_preemptions_total"),
    failures: value("request_failures_total"),
  };
}
