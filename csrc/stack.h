// All layers of a decoder and the norm behind them in one call: the operators of a block, one after the other, as
// model/decoder.py composes them. It computes nothing of its own; what it saves is a dozen calls from Python per layer,
// each as long as reading 0.3 MB of weights.
#pragma once

#include <cstring>
#include <vector>

#include "kernels.h"

namespace ventoux {

struct Layer {
  Rows input_norm, q_a_norm, kv_a_norm, post_norm;
  Weight q_a, q_b, kv_a, kv_b, o;
  Weight router;   // no data: the layer is dense, and `mlp` is all of it
  Weight gate_up, down;
  Mlp mlp;
};

struct Stack {
  int64_t heads, nope, rope, latent, value, top_k, num_experts;
  float eps, softmax_scale, route_scale;
  Rows norm;  // the last one
  std::vector<Layer> layers;
};

// What a step brings: where tokens stand and where their cache lies.
struct Step {
  Rope rope;
  const float* query_scales;
  Layout layout;
  const int64_t* slots;
  std::vector<Rows> caches;  // one per layer
};

// The residual stream goes in, and comes out normed; both [T, D].
inline void run_stack(const Kernels& k, Pool& pool, const Stack& stack, Rows stream, const Step& step, Rows normed) {
  const int64_t T = stream.count;
  constexpr int kFirstSlot = 8;  // those below are the operators' own
  auto buffer = [&](int slot, int64_t cols) {
    return Rows{pool.scratch(kFirstSlot + slot, size_t(T * cols) * (stream.bf16 ? 2 : 4)), T, cols, stream.bf16};
  };
  const Rows x = buffer(9, stream.cols);
  std::memcpy(x.data, stream.data, size_t(T * stream.cols) * (stream.bf16 ? 2 : 4));
  const Attention how{stack.heads,         stack.nope, stack.latent, stack.value,
                      stack.softmax_scale, step.rope,  step.query_scales};
  float* weights = static_cast<float*>(pool.scratch(kFirstSlot + 7, size_t(T * stack.top_k) * 4));
  int64_t* expert_ids = static_cast<int64_t*>(pool.scratch(kFirstSlot + 8, size_t(T * stack.top_k) * 8));
  for (size_t i = 0; i < stack.layers.size(); ++i) {
    const Layer& layer = stack.layers[i];
    const Rows h = buffer(0, x.cols), out = buffer(1, x.cols);
    const Rows q_a = buffer(2, layer.q_a.rows), q_latent = buffer(3, layer.q_a.rows), q = buffer(4, layer.q_b.rows);
    const Rows kv = buffer(5, layer.kv_a.rows), values = buffer(6, stack.heads * stack.value);
    k.rms_norm(pool, x, layer.input_norm, stack.eps, h);
    k.linear(pool, h, layer.q_a, q_a);
    k.rms_norm(pool, q_a, layer.q_a_norm, stack.eps, q_latent);
    k.linear(pool, q_latent, layer.q_b, q);
    k.linear(pool, h, layer.kv_a, kv);
    k.write_latent(pool, kv, layer.kv_a_norm, stack.eps, step.rope, step.caches[i], step.slots);
    k.attention(pool, q, layer.kv_b, step.caches[i], step.layout, how, values);
    k.linear(pool, values, layer.o, out);
    k.add(pool, x, out);
    k.rms_norm(pool, x, layer.post_norm, stack.eps, h);
    Routed routed{};
    if (layer.router.data) {
      k.route(pool, h, layer.router, stack.top_k, stack.route_scale, weights, expert_ids);
      routed = {expert_ids, weights, stack.top_k, stack.num_experts, layer.gate_up, layer.down};
    }
    k.moe(pool, h, routed, layer.mlp, out);
    k.add(pool, x, out);
  }
  k.rms_norm(pool, x, stack.norm, stack.eps, normed);
}

}  // namespace ventoux
