// Linear layers, the norm and the router.
#pragma once

#include "kernels.h"
#include "product.h"

namespace ventoux {
namespace VENTOUX_ISA {

// Rows of one task, of so many `rows` in all: enough to pay for taking it; at `most` so few that a panel of weights
// stays in the second-level cache.
template <class Product>
inline int64_t panel_rows(const Pool& pool, int64_t rows, int64_t most = Product::kPanel) {
  constexpr int64_t step = Product::kRows;
  const int64_t even = rows / (4 * pool.num_threads());
  return std::clamp<int64_t>((even + step - 1) / step * step, step, most);
}

template <class Product>
inline void linear(Pool& pool, Rows x, const Weight& w, Rows out) {
  const int64_t ends[] = {0, x.count};
  const auto in = Product::gather(pool, x, nullptr, ends, 1, w.format == Format::kNvfp4);
  const int64_t panel = panel_rows<Product>(pool, w.rows);
  pool.run(int((w.rows + panel - 1) / panel), [&](int task) {
    const int64_t first = task * panel, count = std::min(panel, w.rows - first);
    const typename Product::Panel weights(w, first, count, 0, x.count);
    alignas(64) float results[Product::kGroup * Product::kPanel];
    Product::for_each_group(0, x.count, [&](int64_t t, int here) {
      weights.dots(in, t, here, results, Product::kPanel);
      for (int m = 0; m < here; ++m) put_columns(out, t + m, first, count, results + m * Product::kPanel);
    });
  });
}

// Columns 0 .. norm.cols - 1 of each row, divided by the root of their mean square and times `norm`: into row to(r)
// of `out`.
template <class To>
inline void norm_rows(Pool& pool, Rows x, Rows norm, float eps, Rows out, const To& to) {
  const int64_t cols = norm.cols, width = padded(cols);
  float* scratch = static_cast<float*>(pool.scratch(kLocal, size_t((x.count + 1) * width) * 4));
  float* weight = scratch + x.count * width;
  split_row(norm.data, norm.bf16, cols, weight);
  run_rows(pool, x.count, [&](int64_t r) {
    float* split = scratch + r * width;
    split_row(x.row(r), x.bf16, cols, split);
    V squares = zero();  // the padding adds zeros
    for (int64_t i = 0; i < width; i += kLanes) squares = fma(load(split + i), load(split + i), squares);
    float sum[4];
    sum4(squares, squares, squares, squares, sum);
    const V factor = splat(1.0f / std::sqrt(sum[0] / float(cols) + eps));
    for (int64_t i = 0; i < width; i += kLanes) store(split + i, load(split + i) * factor * load(weight + i));
    join_row(split, cols, out, to(r));
  });
}

inline void rms_norm(Pool& pool, Rows x, Rows weight, float eps, Rows out) {
  norm_rows(pool, x, weight, eps, out, [](int64_t r) { return r; });
}

inline void route(Pool& pool, Rows x, const Weight& gate, int64_t top_k, float scale, float* weights,
                  int64_t* expert_ids) {
  const float* split = split_rows(pool, x);
  const int64_t width = padded(x.cols), E = gate.rows;
  float* all = static_cast<float*>(pool.scratch(kHidden, size_t(x.count * E) * 4));
  pool.run(int((x.count + kMaxM - 1) / kMaxM), [&](int task) {
    const int64_t first = task * kMaxM;
    const int here = int(std::min<int64_t>(kMaxM, x.count - first));
    const float* rows[kMaxM];
    for (int m = 0; m < here; ++m) rows[m] = split + (first + m) * width;
    weight_dots(gate, 0, E, here, rows, all + first * E, E, {0, here});
    for (int m = 0; m < here; ++m) {
      float* logits = all + (first + m) * E;
      float largest = logits[0];
      for (int64_t e = 1; e < E; ++e) largest = logits[e] > largest ? logits[e] : largest;
      // The softmax's own sum falls out of the renormalisation, but for the 1e-20 that the reference adds to it.
      float total = 0.0f, chosen = 0.0f;
      for (int64_t e = 0; e < E; ++e) {
        logits[e] = std::exp(logits[e] - largest);
        total += logits[e];
      }
      float* w = weights + (first + m) * top_k;
      int64_t* ids = expert_ids + (first + m) * top_k;
      for (int64_t k = 0; k < top_k; ++k) {
        int64_t best = 0;
        for (int64_t e = 1; e < E; ++e)
          if (logits[e] > logits[best]) best = e;
        ids[k] = best;
        w[k] = logits[best] / total;
        chosen += w[k];
        logits[best] = -1.0f;
      }
      for (int64_t k = 0; k < top_k; ++k) w[k] = w[k] / (chosen + 1e-20f) * scale;
    }
  });
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
