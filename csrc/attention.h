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
  float* queries;  // [T * H, query_width], split: the absorbed latent query, then the turned rope query
  int64_t query_width, latent_width;

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

// Absorbed queries of all tokens and heads: [q_nope W_UK | rope(q_rope)] times the position's scale, split.
template <class Reader>
inline void make_queries(Pool& pool, const Rows& q, const Weight& kv_b, const Attention& how, float* queries,
                         int64_t width) {
  const int64_t H = how.heads, N = how.nope, C = how.latent, O = how.value, R = how.rope.width;
  constexpr int64_t kTokens = 24;
  const int64_t token_blocks = (q.count + kTokens - 1) / kTokens;
  pool.run(int(token_blocks * H), [&](int task) {
    static thread_local std::vector<float> nope;
    static thread_local std::vector<Reader> rows;
    nope.resize(size_t(kTokens * N));
    rows.resize(size_t(N));
    const int64_t h = task % H, first = task / H * kTokens, count = std::min(kTokens, q.count - first);
    for (int64_t n = 0; n < N; ++n) rows[size_t(n)] = Reader(kv_b, h * (N + O) + n);
    float* out = queries + (first * H + h) * width;
    for (int64_t m = 0; m < count; ++m) {
      const float s4 = how.query_scales[first + m];
      std::memset(out + m * H * width, 0, size_t(width) * 4);
      for (int64_t n = 0; n < N; ++n) nope[size_t(m * N + n)] = get(q, first + m, h * (N + R) + n) * s4;
    }
    weigh(int(count), nope.data(), N, rows.data(), N, padded(C) / kBlock, C, out, H * width);
    for (int64_t m = 0; m < count; ++m) {
      const int64_t t = first + m, base = h * (N + R) + N;
      for (int64_t i = 0; i < R / 2; ++i) {
        float even, odd;
        turn(get(q, t, base + 2 * i), get(q, t, base + 2 * i + 1), how.rope.cos[t * R / 2 + i],
             how.rope.sin[t * R / 2 + i], &even, &odd);
        out[m * H * width + split_index(C + 2 * i)] = even * how.query_scales[t];
        out[m * H * width + split_index(C + 2 * i + 1)] = odd * how.query_scales[t];
      }
    }
  });
}

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

// sums[T * H, latent_width]: the weighted mean of the latents that each query row sees, split. `Segments` are Latents
// that know what fp32 (vector_attention.h) and bf16 (bf16_attention.h) do each in their way:
//   prepare(pool, blocks): before the first segment
//   segment(sequence, row, num_rows, sees, first, end, then, state): the softmax of query rows [row, row + num_rows)
//     over keys [first, end) of their sequence, one segment at most. A row's token may see keys up to
//     `sees[its number]`; others get weight zero. This thread's next segment is [end, then).
template <class Segments>
inline void attend(Pool& pool, const Segments& work, float* sums) {
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
      float* to = sums + (b.token * H + r) * width;
      const V factor = splat(1.0f / state.total[r]);
      for (int64_t i = 0; i < width; i += kLanes) store(to + i, load(state.sums + r * width + i) * factor);
      for (int64_t j = work.how.latent; j < width; ++j) to[split_index(j)] = 0.0f;  // the last block may hold rope too
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

// out[t, h O + o] = W_UV[h, o] . sums[t, h]
inline void expand_values(Pool& pool, const float* sums, int64_t width, const Weight& kv_b, const Attention& how,
                          Rows out) {
  const int64_t H = how.heads, N = how.nope, O = how.value;
  constexpr int64_t kTokens = 4 * kMaxM;
  const int64_t token_blocks = (out.count + kTokens - 1) / kTokens;
  pool.run(int(token_blocks * H), [&](int task) {
    const int64_t h = task % H, begin = task / H * kTokens, end = std::min(out.count, begin + kTokens);
    float results[kMaxM * kPanel];
    for_each_group(begin, end, kMaxM, [&](int64_t t, int here) {
      const float* rows[kMaxM];
      for (int m = 0; m < here; ++m) rows[m] = sums + ((t + m) * H + h) * width;
      for (int64_t o = 0; o < O; o += kPanel) {
        const int64_t count = std::min(kPanel, O - o);
        weight_dots(kv_b, h * (N + O) + N + o, count, here, rows, results, kPanel, {0, here});
        for (int m = 0; m < here; ++m) put_columns(out, t + m, h * O + o, count, results + m * kPanel);
      }
    });
  });
}

template <class Segments>
inline void attention(Pool& pool, Rows q, const Weight& kv_b, Rows cache, const Layout& layout, const Attention& how,
                      Rows out) {
  const int64_t rows = q.count * how.heads, width = padded(how.latent);
  const int64_t query_width = padded(how.latent + how.rope.width);
  float* queries = static_cast<float*>(pool.scratch(kQueries, size_t(rows * query_width) * 4));
  float* sums = static_cast<float*>(pool.scratch(kHidden, size_t(rows * width) * 4));
  if (kv_b.format == Format::kBf16) {
    make_queries<Bf16Reader>(pool, q, kv_b, how, queries, query_width);
  } else {
    make_queries<F32Reader>(pool, q, kv_b, how, queries, query_width);
  }
  attend(pool, Segments{{cache, layout, how, queries, query_width, width}}, sums);
  expand_values(pool, sums, width, kv_b, how, out);
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
