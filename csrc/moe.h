// Routed and shared experts: pairs of token and expert in groups, two products, one sum per token.
#pragma once

#include <vector>

#include "linear.h"

namespace ventoux {
namespace VENTOUX_ISA {

// (token, choice) pairs in order of expert, then token; the shared expert comes last and has every token.
struct Groups {
  int64_t num_groups = 0;
  std::vector<int64_t> expert;  // of each group; -1 is the shared one
  std::vector<int64_t> begin;   // first pair of each group, and the end of the last
  std::vector<int64_t> token;   // of each pair
  std::vector<int64_t> pair_of;  // [T, K]: where a choice lies among the pairs
};

inline Groups group_pairs(const Routed& routed, int64_t num_tokens, bool shared) {
  const int64_t K = routed.top_k, E = routed.num_experts;
  Groups g;
  std::vector<int64_t> next(size_t(E) + 1, 0);
  for (int64_t i = 0; i < num_tokens * K; ++i) ++next[size_t(routed.expert_ids[i]) + 1];
  for (int64_t e = 0; e < E; ++e) {
    if (next[size_t(e) + 1]) {
      g.expert.push_back(e);
      g.begin.push_back(next[size_t(e)]);
    }
    next[size_t(e) + 1] += next[size_t(e)];
  }
  g.token.resize(size_t(num_tokens * (K + shared)));
  g.pair_of.resize(size_t(num_tokens * K));
  for (int64_t i = 0; i < num_tokens * K; ++i) {
    const int64_t pair = next[size_t(routed.expert_ids[i])]++;
    g.token[size_t(pair)] = i / K;
    g.pair_of[size_t(i)] = pair;
  }
  if (shared) {
    g.expert.push_back(-1);
    g.begin.push_back(num_tokens * K);
    for (int64_t t = 0; t < num_tokens; ++t) g.token[size_t(num_tokens * K + t)] = t;
  }
  g.num_groups = int64_t(g.expert.size());
  g.begin.push_back(num_tokens * (K + shared));
  return g;
}

inline V silu(V x) { return x / (splat(1.0f) + exp(zero() - x)); }

// Tasks of all groups, numbered through: group g has as many as its matrix has panels.
struct Tasks {
  std::vector<int> first;      // task number of each group's first panel
  std::vector<int64_t> panel;  // rows of each group's panels
  int total = 0;
  void add(int64_t rows, int64_t of_panel) {
    first.push_back(total);
    panel.push_back(of_panel);
    total += int((rows + of_panel - 1) / of_panel);
  }
  int group_of(int task) const { return int(std::upper_bound(first.begin(), first.end(), task) - first.begin()) - 1; }
  int64_t row_of(int task, int g) const { return (task - first[size_t(g)]) * panel[size_t(g)]; }
};

template <class Product>
inline void moe(Pool& pool, Rows x, const Routed& routed, const Mlp& shared, Rows out) {
  constexpr int64_t kPanel = Product::kPanel, kLong = Product::kLongPanel;
  const int64_t T = x.count, D = x.cols, K = routed.top_k;
  const bool has_shared = shared.gate.data != nullptr;
  const Groups groups = group_pairs(routed, T, has_shared);
  auto mlp_of = [&](int64_t g) {
    const int64_t e = groups.expert[size_t(g)];
    if (e < 0) return shared;
    Weight gate = routed.gate_up.expert(e), up;
    gate.rows /= 2;
    up = gate;
    up.data = gate.row(gate.rows);
    if (gate.group_scales) up.group_scales = gate.row_groups(gate.rows);
    if (gate.row_scales) up.row_scales = gate.row_scales + gate.rows;
    return Mlp{gate, up, routed.down.expert(e)};
  };
  const int64_t inner = std::max(has_shared ? shared.gate.rows : 0, routed.num_experts ? routed.gate_up.rows / 2 : 0);
  const int64_t num_pairs = int64_t(groups.token.size());
  bool codes = false;
  for (const Weight* w : {&routed.gate_up, &routed.down, &shared.gate, &shared.up, &shared.down})
    codes |= w->data != nullptr && w->format == Format::kNvfp4;
  const auto in = Product::gather(pool, x, groups.token.data(), groups.begin.data(), groups.num_groups, codes);
  auto room = Product::empty(pool, kHidden, num_pairs, inner);
  auto hidden_of = [&](int64_t F) {  // experts and the shared one may differ in width
    auto hidden = room;
    hidden.cols = F;
    return hidden;
  };
  float* pairs = static_cast<float*>(pool.scratch(kPairs, size_t(num_pairs * D + kLanes) * 4));

  // hidden = silu(gate x) * up x, one row per pair
  Tasks ups, downs;
  for (int64_t g = 0; g < groups.num_groups; ++g) {
    // What few activations meet is read once, and as fast as memory brings it: long panels, since turning from gate's
    // rows to up's costs 0.3 us; their results must find room. What many meet must stay in the cache, gate's rows and
    // up's together.
    static_assert(kLong % kBlock == 0 && kPanel / 2 % kBlock == 0);
    const bool few = groups.begin[size_t(g) + 1] - groups.begin[size_t(g)] <= Product::kGroup * kPanel / kLong;
    ups.add(mlp_of(g).gate.rows, panel_rows<Product>(pool, groups.num_groups * inner, few ? kLong : kPanel / 2));
    downs.add(D, panel_rows<Product>(pool, groups.num_groups * D, few ? kLong : kPanel));
  }
  pool.run(ups.total, [&](int task) {
    const int g = ups.group_of(task);
    const Mlp mlp = mlp_of(g);
    const int64_t F = mlp.gate.rows, first = ups.row_of(task, g), panel = ups.panel[size_t(g)];
    const int64_t count = std::min(panel, F - first), ld = padded(panel);
    const int64_t begin = groups.begin[size_t(g)], end = groups.begin[size_t(g) + 1];
    const typename Product::Panel gate(mlp.gate, first, count, begin, end), up(mlp.up, first, count, begin, end, 1);
    alignas(64) float gates[Product::kGroup * kPanel] = {}, upper[Product::kGroup * kPanel] = {};
    Product::for_each_group(begin, end, [&](int64_t p, int here) {
      gate.dots(in, p, here, gates, ld);
      up.dots(in, p, here, upper, ld);
      for (int m = 0; m < here; ++m) {
        float* act = gates + m * ld;
        for (int64_t i = 0; i < count; i += kLanes) store(act + i, silu(load(act + i)) * load(upper + m * ld + i));
      }
      Product::put(hidden_of(F), p, here, first, count, gates, ld);
    });
  });
  Product::finish(pool, room, num_pairs, [&](int64_t p) {
    const auto after = std::upper_bound(groups.begin.begin(), groups.begin.end(), p);
    return mlp_of(after - groups.begin.begin() - 1).gate.rows;
  }, codes);
  pool.run(downs.total, [&](int task) {
    const int g = downs.group_of(task);
    const Weight down = mlp_of(g).down;
    const int64_t first = downs.row_of(task, g), count = std::min(downs.panel[size_t(g)], D - first);
    const int64_t begin = groups.begin[size_t(g)], end = groups.begin[size_t(g) + 1];
    const typename Product::Panel weights(down, first, count, begin, end);
    Product::for_each_group(begin, end, [&](int64_t p, int here) {
      weights.dots(hidden_of(down.cols), p, here, pairs + p * D + first, D);
    });
  });
  // Each token's sum: its experts by rising id, then the shared one.
  constexpr int64_t kTokensPerTask = 8;
  pool.run(int((T + kTokensPerTask - 1) / kTokensPerTask), [&](int task) {
    std::vector<int64_t> order(static_cast<size_t>(K));
    for (int64_t t = task * kTokensPerTask; t < std::min(T, (task + 1) * kTokensPerTask); ++t) {
      for (int64_t k = 0; k < K; ++k) order[size_t(k)] = k;
      const int64_t* ids = routed.expert_ids + t * K;
      std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
      for (int64_t d = 0; d < D; d += kLanes) {
        const int64_t here = std::min<int64_t>(kLanes, D - d);
        V sum = zero();
        for (int64_t k : order) {
          const float* row = pairs + groups.pair_of[size_t(t * K + k)] * D;
          sum = fma(splat(routed.weights[t * K + k]), load(row + d), sum);
        }
        if (has_shared) sum = sum + load(pairs + (T * K + t) * D + d);
        float values[kLanes];
        store(values, sum);
        put_columns(out, t, d, here, values);
      }
    }
  });
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
