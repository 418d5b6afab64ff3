// Latent attention over the paged cache, absorbed (see model/attention.py): all heads of a token share the cached
// rows, so its H queries are H rows of one product with them.
//
// Keys are visited in segments of 256, counted from the start of the sequence. A segment's softmax starts afresh, the
// four segments of a group are merged in rising order, and so are groups. So the bits of a result depend on the
// sequence alone: not on the chunk, not on the other tokens in it, not on which thread had which segment or group.
#pragma once

#include <vector>

#include "kernels.h"
#include "linear.h"
#include "weigh.h"

namespace ventoux {
namespace VENTOUX_ISA {

constexpr int64_t kSegment = 256;
constexpr int64_t kGroupOf = 4;
constexpr int64_t kQueryRows = 64;  // query rows (tokens x heads) of one task
// What pieces that are shared out may take until they are merged; 256k tokens of context with 32 heads take 8 MB.
constexpr int64_t kMaxPartialBytes = 64 << 20;

// The pair (2i, 2i + 1) turned by angle i.
inline void turn(float even, float odd, float cos, float sin, float* to_even, float* to_odd) {
  *to_even = even * cos - odd * sin;
  *to_odd = even * sin + odd * cos;
}

inline void write_latent(Pool& pool, Rows rows, Rows norm, float eps, Rope rope, Rows cache, const int64_t* slots) {
  const int64_t C = norm.cols, half = rope.width / 2;
  norm_rows(pool, rows, norm, eps, cache, [&](int64_t t) { return slots[t]; });
  run_rows(pool, rows.count, [&](int64_t t) {
    for (int64_t i = 0; i < half; ++i) {
      float even, odd;
      turn(get(rows, t, C + 2 * i), get(rows, t, C + 2 * i + 1), rope.cos[t * half + i], rope.sin[t * half + i], &even,
           &odd);
      put(cache, slots[t], C + 2 * i, even);
      put(cache, slots[t], C + 2 * i + 1, odd);
    }
  });
}

// The state of a softmax that has seen some keys: largest score, sum of weights, weighted sum of latents (split).
// There is room for a multiple of kRowStep rows (of whoever does the segments).
struct Softmax {
  float* largest;  // [rows]
  float* total;    // [rows]
  float* sums;     // [rows, width of a split latent]
};

// What one attention call knows; tasks take it by reference.
struct Latents {
  const Rows& cache;
  const Layout& layout;
  const Attention& how;
  int64_t query_width;   // of the absorbed latent query and the turned rope query together, padded
  int64_t latent_width;  // padded

  // Where keys first .. first + count - 1 of a sequence lie.
  void find_keys(int64_t sequence, int64_t first, int64_t count, const char** keys) const {
    const int64_t size = layout.page_size;
    int64_t page = first / size, at = first % size;
    for (int64_t s = 0; s < count; ++page, at = 0)
      for (const int64_t row = layout.pages[sequence * layout.max_pages + page] * size; at < size && s < count; ++at)
        keys[s++] = cache.row(row + at);
  }

  // Adds what a later segment found to what earlier ones did.
  void merge(int num_rows, const Softmax& into, const Softmax& from) const {
    for (int r = 0; r < num_rows; ++r) {
      if (from.total[r] == 0.0f) continue;  // saw nothing
      const float a = into.largest[r], b = from.largest[r], largest = a > b || a != a ? a : b;
      float before[kLanes], after[kLanes];
      store(before, exp(splat(a - largest)));
      store(after, exp(splat(b - largest)));
      into.total[r] = into.total[r] * before[0] + from.total[r] * after[0];
      into.largest[r] = largest;
      for (int64_t i = 0; i < latent_width; i += kLanes) {
        float* p = into.sums + r * latent_width + i;
        store(p, fma(load(p), splat(before[0]), load(from.sums + r * latent_width + i) * splat(after[0])));
      }
    }
  }
};

// One task of the attention proper: tokens [token, token + num_tokens) of a sequence.
struct QueryBlock {
  int64_t sequence, token, num_tokens;
  int64_t position;  // of the first token
  int64_t num_segments;
  int64_t num_keys() const { return position + num_tokens; }
};

inline std::vector<QueryBlock> cut_queries(const Layout& layout, int64_t tokens_per_block) {
  std::vector<QueryBlock> blocks;
  int64_t token = 0;
  for (int64_t i = 0; i < layout.num_sequences; ++i) {
    for (int64_t t = 0; t < layout.lengths[i]; t += tokens_per_block) {
      const int64_t count = std::min(tokens_per_block, layout.lengths[i] - t);
      const int64_t position = layout.contexts[i] - layout.lengths[i] + t;
      blocks.push_back({i, token + t, count, position, (position + count + kSegment - 1) / kSegment});
    }
    token += layout.lengths[i];
  }
  return blocks;
}

// means [T * H, C]: the weighted mean of the latents that each query row sees. `Segments` are Latents that know what
// fp32 (vector_attention.h) and bf16 (bf16_attention.h) do each in their way, queries among it:
//   absorb(pool, q, kv_b, how, queries, query_width): [q_nope W_UK | rope(q_rope)] times the position's scale, for all
//     tokens and heads
//   prepare(pool, blocks): before the first segment
//   segment(sequence, row, num_rows, sees, first, end, then, state): the softmax of query rows [row, row + num_rows)
//     over keys [first, end) of their sequence, one segment at most. A row's token may see keys up to
//     `sees[its number]`; others get weight zero. This thread's next segment is [end, then).
template <class Segments>
inline void attend(Pool& pool, const Segments& work, Rows means) {
  const int64_t H = work.how.heads, width = work.latent_width;
  const std::vector<QueryBlock> blocks = cut_queries(work.layout, std::max<int64_t>(1, kQueryRows / H));
  int64_t rows = 0;
  for (const QueryBlock& b : blocks) rows = std::max(rows, b.num_tokens * H);
  rows = (rows + Segments::kRowStep - 1) / Segments::kRowStep * Segments::kRowStep;
  work.prepare(pool, blocks);
  auto state_at = [&](float* memory) { return Softmax{memory, memory + rows, memory + 2 * rows}; };
  const int64_t state_size = rows * (width + 2);

  // Segment s of a block, whose run goes on to segment `last`.
  auto run_segment = [&](const QueryBlock& b, int64_t s, int64_t last, const Softmax& state) {
    int64_t sees[kQueryRows];
    const int64_t end = std::min((s + 1) * kSegment, b.num_keys()), all = b.num_tokens * H;
    const int64_t then = s < last ? std::min(end + kSegment, b.num_keys()) : end;
    for (int64_t r = 0; r < all; r += kQueryRows) {
      const int here = int(std::min(kQueryRows, all - r));
      for (int i = 0; i < here; ++i) sees[i] = b.position + (r + i) / H + 1;
      work.segment(b.sequence, b.token * H + r, here, sees, s * kSegment, end, then,
                   {state.largest + r, state.total + r, state.sums + r * width});
    }
  };
  // Group g of a block; `part` has room for one segment.
  auto run_group = [&](const QueryBlock& b, int64_t g, int64_t last, const Softmax& state, const Softmax& part) {
    const int64_t first = g * kGroupOf, end = std::min(first + kGroupOf, b.num_segments);
    run_segment(b, first, last, state);
    for (int64_t s = first + 1; s < end; ++s) {
      run_segment(b, s, last, part);
      work.merge(int(b.num_tokens * H), state, part);
    }
  };
  auto finish = [&](const QueryBlock& b, const Softmax& state) {
    for (int64_t r = 0; r < b.num_tokens * H; ++r) {
      float* sums = state.sums + r * width;
      const V factor = splat(1.0f / state.total[r]);
      for (int64_t i = 0; i < width; i += kLanes) store(sums + i, load(sums + i) * factor);
      join_row(sums, means.cols, means, b.token * H + r);  // the last block may hold rope too
    }
  };

  // Blocks in pieces of so many segments: where each one's begin.
  std::vector<int64_t> begin;
  auto cut = [&](int64_t segments) {
    begin.assign(1, 0);
    for (const QueryBlock& b : blocks) begin.push_back(begin.back() + (b.num_segments + segments - 1) / segments);
    return begin.back();
  };
  // Few blocks (decode steps of few sequences): threads share out groups, or segments if there are few of these too.
  const int64_t num_blocks = int64_t(blocks.size()), enough = 4 * pool.num_threads();
  const bool by_group = cut(kGroupOf) >= 4 * enough;  // the last ones of few would keep others waiting
  const int64_t num_pieces = by_group ? begin.back() : cut(1);
  if (num_blocks >= enough || num_pieces == num_blocks || num_pieces * state_size * 4 > kMaxPartialBytes) {
    // Blocks enough for all, or too much to hold: each thread takes a block and does its groups in turn.
    pool.run(int(num_blocks), [&](int task) {
      static thread_local std::vector<float> memory;
      memory.resize(size_t(3 * state_size));
      float* room = memory.data();
      const Softmax whole = state_at(room), group = state_at(room + state_size), part = state_at(room + 2 * state_size);
      const QueryBlock& b = blocks[size_t(task)];
      run_group(b, 0, b.num_segments - 1, whole, part);
      for (int64_t g = 1; g * kGroupOf < b.num_segments; ++g) {
        run_group(b, g, b.num_segments - 1, group, part);
        work.merge(int(b.num_tokens * H), whole, group);
      }
      finish(b, whole);
    });
    return;
  }
  float* memory = static_cast<float*>(pool.scratch(kPartials, size_t(num_pieces * state_size) * 4));
  pool.run(int(num_pieces), [&](int task) {
    static thread_local std::vector<float> room;
    room.resize(size_t(state_size));
    const int64_t i = std::upper_bound(begin.begin(), begin.end(), task) - begin.begin() - 1, piece = task - begin[i];
    const QueryBlock& b = blocks[size_t(i)];
    const Softmax state = state_at(memory + task * state_size);
    if (by_group) {
      run_group(b, piece, std::min((piece + 1) * kGroupOf, b.num_segments) - 1, state, state_at(room.data()));
    } else {
      run_segment(b, piece, piece, state);
    }
  });
  pool.run(int(num_blocks), [&](int task) {
    const QueryBlock& b = blocks[size_t(task)];
    auto piece = [&](int64_t i) { return state_at(memory + (begin[size_t(task)] + i) * state_size); };
    const int64_t count = begin[size_t(task) + 1] - begin[size_t(task)], together = by_group ? 1 : kGroupOf;
    for (int64_t g = 0; g < count; g += together) {
      for (int64_t s = g + 1; s < std::min(g + together, count); ++s)
        work.merge(int(b.num_tokens * H), piece(g), piece(s));
      if (g) work.merge(int(b.num_tokens * H), piece(0), piece(g));
    }
    finish(b, piece(0));
  });
}

// out[t, h O + o] = W_UV[h, o] . means[t, h]: a product for each head, as experts have one each.
template <class Product>
inline void expand_values(Pool& pool, Rows means, const Weight& kv_b, const Attention& how, Rows out) {
  const int64_t T = out.count, H = how.heads, N = how.nope, O = how.value;
  std::vector<int64_t> row_of(size_t(T * H)), ends(1, 0);
  for (int64_t h = 0; h < H; ++h) {
    for (int64_t t = 0; t < T; ++t) row_of[size_t(h * T + t)] = t * H + h;
    ends.push_back((h + 1) * T);
  }
  const auto in = Product::gather(pool, means, row_of.data(), ends.data(), H, false);
  const int64_t panel = panel_rows<Product>(pool, H * O), panels = (O + panel - 1) / panel;
  pool.run(int(H * panels), [&](int task) {
    const int64_t h = task / panels, first = task % panels * panel, count = std::min(panel, O - first);
    const typename Product::Panel weights(kv_b, h * (N + O) + N + first, count, h * T, (h + 1) * T);
    alignas(64) float results[Product::kGroup * Product::kPanel];
    Product::for_each_group(h * T, (h + 1) * T, [&](int64_t p, int here) {
      weights.dots(in, p, here, results, Product::kPanel);
      for (int m = 0; m < here; ++m)
        put_columns(out, p - h * T + m, h * O + first, count, results + m * Product::kPanel);
    });
  });
}

template <class Segments>
inline void attention(Pool& pool, Rows q, const Weight& kv_b, Rows cache, const Layout& layout, const Attention& how,
                      Rows out) {
  const int64_t rows = q.count * how.heads, query_width = padded(how.latent + how.rope.width);
  using Query = typename Segments::Query;
  constexpr bool bf16 = sizeof(Query) == 2;
  // Another 64 bytes: fewer than 16 queries are read like 16.
  auto* queries = static_cast<Query*>(pool.scratch(kQueries, size_t(rows * query_width) * sizeof(Query) + 64));
  void* means = pool.scratch(kHidden, size_t(rows * how.latent) * sizeof(Query));
  Segments::absorb(pool, q, kv_b, how, queries, query_width);
  const Rows mean_rows{means, rows, how.latent, bf16};
  attend(pool, Segments{{cache, layout, how, query_width, padded(how.latent)}, queries}, mean_rows);
  expand_values<typename Segments::Product>(pool, mean_rows, kv_b, how, out);
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
