"""Which experts computed a token: what is told must be what the model did, and asking must change nothing."""

from __future__ import annotations

import pytest
import torch

from tests.engines import prompt, request, run, tiny_engine, tokens
from tests.tiny import tiny_config, tiny_model
from ventoux.config import Speculation
from ventoux.engine.drafting import Progress
from ventoux.engine.request import EngineOutput
from ventoux.model.decoder import ForwardInputs
from ventoux.model.moe import Router
from ventoux.ops.cpu import instruction_sets, native_operators

IDS = prompt(40, seed=4)


def experts(outputs: list[EngineOutput]) -> list[list[list[int]]]:
    return [token.experts for output in outputs for token in output.tokens]


def routes_of(model, ids: list[int]) -> list[list[list[int]]]:
    """The same from one pass over the whole text, without cache and engine: [tokens][layers][top k]."""
    routes = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _, __, routed: routes.append(routed[1]))
    with torch.inference_mode():
        model(ForwardInputs(torch.tensor(ids), torch.arange(len(ids)), (len(ids),)))
    return torch.stack(routes, dim=1).tolist()


@pytest.mark.parametrize("budget", [512, 11])
def test_they_are_those_of_the_row_that_the_token_came_from(budget):
    """One row too far, another request's rows, or the first layer's ids for all layers."""
    model = tiny_model()
    engine = tiny_engine(model=model, max_num_batched_tokens=budget)
    asked = request(IDS, "asked", routed_experts=True)
    others = [request(prompt(7 + i, seed=i), f"other-{i}") for i in range(3)]
    outputs = run(engine, [others[0], asked, *others[1:]])
    found = experts(outputs["asked", 0])
    whole = routes_of(tiny_model(), [*IDS, *tokens(outputs["asked", 0])])
    assert found == whole[len(IDS) - 1 : -1]
    assert len({str(row) for row in found}) > 1, "every token has the same experts: the test cannot fail"
    assert not any(token for other in others for token in experts(outputs[other.request_id, 0]))


class Oracle:
    """Guesses what is going to come, and at every third token something else."""

    def __init__(self, coming: list[int]):
        self.coming = [token if i % 3 else 1000 for i, token in enumerate(coming)]

    def propose(self, progress: list[Progress]) -> list[list[int]]:
        return [self.coming[p.sequence.num_generated :][: p.wanted] for p in progress]


def test_guessed_tokens_have_theirs():
    """With guesses several tokens come from one step, each from a row of its own."""
    asked = request(IDS, "asked", routed_experts=True, max_tokens=24)
    plain = run(tiny_engine(), [asked])["asked", 0]
    always = Speculation("test", 3, adaptive=False)
    engine = tiny_engine(make_drafter=lambda runner, plan: Oracle(tokens(plain)), speculation=always)
    drafted = run(engine, [asked])["asked", 0]
    assert drafted[-1].num_accepted_tokens > 8 and len(drafted) < 20
    assert experts(drafted) == experts(plain)


@pytest.mark.skipif(not instruction_sets(), reason="installed without native code")
def test_asking_changes_no_bit():
    """The layers run one by one then, instead of all in one native call."""

    def bits(**params):
        engine = tiny_engine(model=tiny_model(ops=native_operators(1)))
        outputs = run(engine, [request(IDS, "asked", logprobs=3, **params), request(IDS[:9], "beside", logprobs=3)])
        return [[(t.token_id, t.logprobs) for o in outputs[name, 0] for t in o.tokens] for name in ("asked", "beside")]

    assert bits(routed_experts=True) == bits()


def test_a_model_without_experts_answers_without_them():
    """Asking ended the request with an internal error."""
    engine = tiny_engine(model=tiny_model(tiny_config(first_k_dense_replace=2)))
    outputs = run(engine, [request(IDS, "asked", routed_experts=True)])
    assert outputs["asked", 0][-1].finish_reason == "length" and not any(experts(outputs["asked", 0]))
