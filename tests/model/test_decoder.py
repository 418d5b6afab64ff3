"""The forward contract: whatever the split into chunks, the neighbours in the batch or the form of attention, a
token's logits are the same."""

import pytest
import torch

from tests.paging import PagedCache
from tests.tiny import VOCAB_SIZE, tiny_config, tiny_draft, tiny_model
from ventoux.config import RopeConfig
from ventoux.model.decoder import ForwardInputs

# Scale and rope must change within the test: with 8192 positions per step nothing would.
ROPE = RopeConfig(original_max_position_embeddings=16, llama_4_original_max_position_embeddings=4)
LENGTHS = (11, 1, 7)


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config(vision=False, rope=ROPE))


def tokens(length, seed):
    return torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed))


def packed(ids, starts, lengths, layout=None):
    positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    return ForwardInputs(ids, positions, tuple(lengths), layout)


def logits(model, inputs, cache=None):
    with torch.no_grad():
        return model.logits(model(inputs, cache))


@pytest.fixture(scope="module")
def sequences():
    return [tokens(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def expanded(model, sequences):
    """Each sequence alone, no cache: the definition."""
    return [logits(model, packed(ids, [0], [len(ids)])) for ids in sequences]


def test_packing_without_a_cache(model, sequences, expanded):
    """A mask that leaks across sequences shows here."""
    got = logits(model, packed(torch.cat(sequences), [0, 0, 0], LENGTHS))
    assert torch.allclose(got, torch.cat(expanded), atol=1e-5)


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_absorbed_equals_expanded(model, sequences, expanded, page_size):
    paged = PagedCache(model.config.text, list(LENGTHS), page_size)
    inputs = packed(torch.cat(sequences), [0, 0, 0], LENGTHS, paged.layout(list(LENGTHS)))
    assert torch.allclose(logits(model, inputs, paged.tensors), torch.cat(expanded), atol=1e-5)


@pytest.mark.parametrize(
    "steps",
    [
        [(1, 0, 0)] * 11 + [(0, 1, 0)] + [(0, 0, 1)] * 7,
        [(5, 1, 2), (6, 0, 5)],
        [(4, 0, 7), (1, 1, 0), (6, 0, 0)],
        [(1, 1, 1), *[(1, 0, 1)] * 6, *[(1, 0, 0)] * 4],
    ],
    ids=["token by token", "two chunks", "late arrival", "decoding together"],
)
def test_any_chunking_equals_one_shot(model, sequences, expanded, steps):
    """Prefill chunks and decode steps of several sequences in one call, each at its own position."""
    paged = PagedCache(model.config.text, list(LENGTHS), page_size=3)
    done = [0, 0, 0]
    got = [[], [], []]
    for step in steps:
        live = [i for i, count in enumerate(step) if count]
        layout = select(paged.layout(list(step)), live)
        chunks = [sequences[i][done[i] : done[i] + step[i]] for i in live]
        counts = [step[i] for i in live]
        inputs = packed(torch.cat(chunks), [done[i] for i in live], counts, layout)
        for i, rows in zip(live, logits(model, inputs, paged.tensors).split(counts), strict=True):
            got[i].append(rows)
            done[i] += len(rows)
    for rows, wanted in zip(got, expanded, strict=True):
        assert torch.allclose(torch.cat(rows), wanted, atol=1e-5)


def select(layout, live):
    """The layout without the sequences that have no token in this step."""
    return type(layout)(
        tuple(layout.lengths[i] for i in live),
        tuple(layout.context_lengths[i] for i in live),
        layout.pages_NP[live],
        layout.slots_T,
    )


def test_later_tokens_do_not_change_earlier_logits(model, sequences, expanded):
    changed = sequences[0].clone()
    changed[6:] = tokens(5, 99)
    got = logits(model, packed(changed, [0], [11]))
    # Not the same bits: torch's products may add in another order where experts have other numbers of rows.
    assert torch.allclose(got[:6], expanded[0][:6], atol=1e-5)
    assert not torch.allclose(got[6:], expanded[0][6:], atol=1e-2)
    dense = tiny_model(tiny_config(vision=False, first_k_dense_replace=tiny_config().text.num_hidden_layers))
    same, other = (logits(dense, packed(ids, [0], [11])) for ids in (sequences[0], changed))
    assert torch.equal(same[:6], other[:6])


def test_position_acts_through_the_query_scale(model, sequences, expanded):
    """Rope is relative, the query scale is not: the same tokens four positions later give other logits."""
    flat = tiny_model(tiny_config(vision=False, rope=RopeConfig(llama_4_scaling_beta=0.0)))
    ids = sequences[0]
    moved = [logits(m, packed(ids, [5], [11])) for m in (model, flat)]
    assert not torch.allclose(moved[0], expanded[0], atol=1e-3)
    assert torch.allclose(moved[1], logits(flat, packed(ids, [0], [11])), atol=1e-5)


def test_image_rows_replace_embeddings_at_their_places(model, sequences):
    """Rows equal to the embeddings of other tokens must act as those tokens."""
    ids, other = sequences[0], tokens(3, 5)
    where = torch.tensor([2, 3, 8])
    with torch.no_grad():
        rows = model.language_model.embed_tokens(other)
    inputs = ForwardInputs(ids, torch.arange(11), (11,), image_idx_M=where, image_rows_MD=rows)
    assert torch.equal(logits(model, inputs), logits(model, packed(ids.index_copy(0, where, other), [0], [11])))


def test_draft_steps_through_a_cache():
    """The draft joins embedding first, hidden state last, and runs the same cache path as its target."""
    draft = tiny_draft()
    generator = torch.Generator().manual_seed(3)
    embeds, hidden = torch.randn(2, 6, 40, generator=generator)
    ids = torch.zeros(6, dtype=torch.long)
    with torch.no_grad():
        whole = draft(embeds, hidden, packed(ids, [0], [6]))
        assert whole.shape == (6, 40)
        for_embeds, for_hidden = draft.eagle_linear.weight.split(40, dim=1)
        mixed = embeds @ for_embeds.T + hidden @ for_hidden.T
        assert torch.allclose(draft.run(mixed, packed(ids, [0], [6]), None), whole, atol=1e-5)
        paged = PagedCache(draft.config, [6], page_size=4)
        parts = []
        for start, stop in ((0, 4), (4, 5), (5, 6)):
            inputs = packed(ids[start:stop], [start], [stop - start], paged.layout([stop - start]))
            parts.append(draft(embeds[start:stop], hidden[start:stop], inputs, paged.tensors))
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
