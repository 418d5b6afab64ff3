// Segments of latent attention in fp32 vectors, in blocks of 64 keys.
#pragma once

#include "attention.h"

namespace ventoux {
namespace VENTOUX_ISA {

constexpr int64_t kKeys = 64;

template <class Reader, class P>
struct VectorSegments : Latents {
  using Product = P;
  using Query = float;
  static constexpr int64_t kRowStep = 1;
  Query* queries;  // [T * H, query_width], split

  static void absorb(Pool& pool, const Rows& q, const Weight& kv_b, const Attention& how, Query* queries,
                     int64_t width) {
    if (kv_b.format == Format::kBf16) {
      absorb_as<Bf16Reader>(pool, q, kv_b, how, queries, width);
    } else {
      absorb_as<F32Reader>(pool, q, kv_b, how, queries, width);
    }
  }
  template <class Weights>
  static void absorb_as(Pool& pool, const Rows& q, const Weight& kv_b, const Attention& how, Query* queries,
                        int64_t width) {
    const int64_t H = how.heads, N = how.nope, C = how.latent, O = how.value, R = how.rope.width;
    constexpr int64_t kTokens = 24;
    const int64_t token_blocks = (q.count + kTokens - 1) / kTokens;
    pool.run(int(token_blocks * H), [&](int task) {
      static thread_local std::vector<float> nope;
      static thread_local std::vector<Weights> rows;
      nope.resize(size_t(kTokens * N));
      rows.resize(size_t(N));
      const int64_t h = task % H, first = task / H * kTokens, count = std::min(kTokens, q.count - first);
      for (int64_t n = 0; n < N; ++n) rows[size_t(n)] = Weights(kv_b, h * (N + O) + n);
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

  void prepare(Pool&, const std::vector<QueryBlock>&) const {}

  void segment(int64_t sequence, int64_t row, int num_rows, const int64_t* sees, int64_t first, int64_t end,
               int64_t, const Softmax& state) const {
    const int64_t width = latent_width, C = how.latent;
    for (int r = 0; r < num_rows; ++r) {
      state.largest[r] = -INFINITY;
      state.total[r] = 0.0f;
    }
    std::memset(state.sums, 0, size_t(num_rows * width) * 4);
    const char* found[kKeys];
    Reader keys[kKeys];
    float scores[kQueryRows * kKeys];
    for (int64_t at = first; at < end; at += kKeys) {
      const int64_t count = std::min(kKeys, end - at);
      find_keys(sequence, at, count, found);
      for (int64_t s = 0; s < count; ++s) keys[s] = Reader(found[s]);
      for (int r = 0; r < num_rows; r += kMaxM) {
        const int here = std::min(kMaxM, num_rows - r);
        const float* q[kMaxM];
        for (int m = 0; m < here; ++m) q[m] = queries + (row + r + m) * query_width;
        // The first rows that meet these keys fetch the next four, which mostly lie behind them: 1.3x at 32k tokens.
        const int step = rows_at_once(here);
        const Fetch next{r == 0 ? step * (cache.row(1) - cache.row(0)) : 0, step};
        dots<Reader>([&](int64_t s) { return keys[s]; }, 0, count, here, q, cache.cols, next, scores + r * kKeys,
                     kKeys);
      }
      for (int r = 0; r < num_rows; ++r) soften(r, scores + r * kKeys, std::min(count, sees[r] - at), count, state);
      weigh(num_rows, scores, kKeys, keys, count, width / kBlock, std::min(cache.cols, padded(C)), state.sums, width);
    }
  }

  // Scores of one row -> weights relative to the largest score so far; what was summed before shrinks accordingly.
  void soften(int r, float* scores, int64_t visible, int64_t count, const Softmax& state) const {
    if (visible <= 0) {
      for (int64_t s = 0; s < count; ++s) scores[s] = 0.0f;
      return;
    }
    for (int64_t s = 0; s < visible; ++s) scores[s] *= how.scale;
    for (int64_t s = visible; s < kKeys; ++s) scores[s] = -INFINITY;
    V top = load(scores);
    for (int64_t s = kLanes; s < kKeys; s += kLanes) top = max(top, load(scores + s));
    float lanes[kLanes], largest = state.largest[r];
    store(lanes, top);
    bool broken = false;  // a NaN must come through: comparisons alone would drop it
    for (float lane : lanes) {
      largest = lane > largest ? lane : largest;
      broken |= lane != lane;
    }
    if (broken) largest = NAN;
    const V base = splat(largest);
    V sum = zero();
    for (int64_t s = 0; s < kKeys; s += kLanes) {
      const V p = exp(load(scores + s) - base);
      store(scores + s, p);
      sum = sum + p;
    }
    float sums[4], factor[kLanes];
    sum4(sum, sum, sum, sum, sums);
    store(factor, exp(splat(state.largest[r] - largest)));
    state.total[r] = state.total[r] * factor[0] + sums[0];
    state.largest[r] = largest;
    if (factor[0] != 1.0f)
      for (int64_t i = 0; i < latent_width; i += kLanes) {
        float* p = state.sums + r * latent_width + i;
        store(p, load(p) * splat(factor[0]));
      }
  }
};

template <class Product>
inline void vector_attention(Pool& pool, Rows q, const Weight& kv_b, Rows cache, const Layout& layout,
                             const Attention& how, Rows out) {
  if (cache.bf16) {
    attention<VectorSegments<Bf16Reader, Product>>(pool, q, kv_b, cache, layout, how, out);
  } else {
    attention<VectorSegments<F32Reader, Product>>(pool, q, kv_b, cache, layout, how, out);
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
