"""Metrics under our names and under vLLM's, and the dashboard that asks for them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import FakeEngine
from tests.server.conftest import HELLO, MODEL
from ventoux.engine.request import EngineStats

DASHBOARD = Path(__file__).parents[2] / "docs" / "dashboards" / "ventoux.json"

# What boards and autoscalers for vLLM ask for.
VLLM = tuple(
    """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:num_preemptions_total
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total
vllm:request_success_total vllm:time_to_first_token_seconds_bucket vllm:time_to_first_token_seconds_sum
vllm:inter_token_latency_seconds_bucket vllm:inter_token_latency_seconds_count
vllm:request_time_per_output_token_seconds_bucket vllm:e2e_request_latency_seconds_bucket
vllm:e2e_request_latency_seconds_sum vllm:e2e_request_latency_seconds_count vllm:request_queue_time_seconds_sum
vllm:request_inference_time_seconds_sum vllm:request_prefill_time_seconds_sum vllm:request_decode_time_seconds_sum
vllm:request_prompt_tokens_bucket vllm:request_generation_tokens_bucket
vllm:request_max_num_generation_tokens_bucket vllm:spec_decode_num_drafts_total
vllm:spec_decode_num_draft_tokens_total vllm:spec_decode_num_accepted_tokens_total
vllm:spec_decode_num_accepted_tokens_per_pos_total
""".split()  # noqa: SIM905
)


class SpeculatingEngine(FakeEngine):
    def stats(self) -> EngineStats:
        stats = super().stats()
        stats.spec_decode_num_drafts = 4
        stats.spec_decode_num_accepted_tokens_per_pos = [3, 1]
        return stats


@pytest.fixture
def scraped(make_server):
    """Samples by name, after a few requests."""
    server = make_server(engine=SpeculatingEngine(), api_key=("k",))
    server.says("one two")
    headers = {"authorization": "Bearer k"}
    for stream in (False, True):
        server.post("/v1/chat/completions", {"messages": HELLO, "n": 2, "stream": stream}, headers=headers)
    server.get("/v1/models")
    server.get("/x" * 50, headers=headers)
    text = server.get("/metrics", headers=headers).text
    samples: dict[str, list] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def test_vllms_names_have_vllms_labels_and_our_values(scraped):
    """Existing boards filter by `model_name`; without it they show nothing."""
    for name in VLLM:
        ours = name.replace("vllm:", "ventoux_")
        assert name in scraped, name
        assert [s.value for s in scraped[name]] == [s.value for s in scraped[ours]], name
        assert all(s.labels["model_name"] == MODEL and "engine" in s.labels for s in scraped[name])
    reasons = {s.labels["finished_reason"]: s.value for s in scraped["vllm:request_success_total"]}
    assert reasons == {"stop": 2.0}
    assert [s.labels["position"] for s in scraped["vllm:spec_decode_num_accepted_tokens_per_pos_total"]] == ["0", "1"]


def test_phases_add_up(scraped):
    def total(name):
        return scraped[f"ventoux_{name}_sum"][0].value

    assert scraped["ventoux_request_queue_time_seconds_count"][0].value == 2
    waited, prompt, answer = (total(f"request_{phase}_time_seconds") for phase in ("queue", "prefill", "decode"))
    assert waited + prompt + answer == pytest.approx(total("e2e_request_latency_seconds"), abs=0.5)
    assert total("request_inference_time_seconds") == pytest.approx(prompt + answer, abs=0.5)


def test_requests_are_counted_by_route_and_strangers_make_no_series(scraped):
    """A path for each of a million made-up ones was a series for each."""
    counts = {(s.labels["path"], s.labels["status"]): s.value for s in scraped["ventoux_http_requests_total"]}
    assert counts == {("/v1/chat/completions", "200"): 2, ("/v1/models", "401"): 1, ("other", "404"): 1}


def test_every_metric_of_the_dashboard_exists(scraped):
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    expressions += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    names = {name for expression in expressions for name in re.findall(r"\b(?:ventoux_|vllm:)\w+", expression)}
    assert len(names) > 25 and names <= set(scraped), names - set(scraped)
    for expression in expressions:
        for name, labels in re.findall(r"by \((\w+)\) \(rate\((\w+)", expression):
            if name != "le":
                assert all(name in s.labels for s in scraped[labels]), expression
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
