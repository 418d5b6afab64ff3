// Compiled once for each way to multiply bf16: with tiles if VENTOUX_TILES is defined, else with vectors; by the
// hardware's instructions, or in a test's variant by functions that stand for them (VENTOUX_EMULATED).
#include "kernels.h"

#include "bf16_attention.h"
#include "linear.h"
#include "moe.h"

namespace ventoux {
namespace VENTOUX_ISA {

#if defined(VENTOUX_TILES)
using Product = Tiles;
#else
using Product = Vectors<Bf16, Words>;
#endif

// The choice depends on types alone, never on how many rows there are: a row's bits would depend on it too.
void linear_bf16(Pool& pool, Rows x, const Weight& w, Rows out) {
  if (x.bf16 && w.format != Format::kF32) {
    linear<Product>(pool, x, w, out);
  } else {
    kAvx512.linear(pool, x, w, out);
  }
}

void moe_bf16(Pool& pool, Rows x, const Routed& routed, const Mlp& shared, Rows out) {
  bool narrow = x.bf16;
  for (const Weight* w : {&routed.gate_up, &routed.down, &shared.gate, &shared.up, &shared.down})
    narrow &= w->data == nullptr || w->format != Format::kF32;
  if (narrow) {
    moe<Product>(pool, x, routed, shared, out);
  } else {
    kAvx512.moe(pool, x, routed, shared, out);
  }
}

void attention_bf16(Pool& pool, Rows q, const Weight& kv_b, Rows cache, const Layout& layout, const Attention& how,
                    Rows out) {
  if (q.bf16 && cache.bf16 && kv_b.format == Format::kBf16) {
    attention<Bf16Segments<Product>>(pool, q, kv_b, cache, layout, how, out);
  } else {
    kAvx512.attention(pool, q, kv_b, cache, layout, how, out);
  }
}

}  // namespace VENTOUX_ISA

const Products VENTOUX_TABLE = {
    .name = VENTOUX_NAME,
    .linear = VENTOUX_ISA::linear_bf16,
    .moe = VENTOUX_ISA::moe_bf16,
    .attention = VENTOUX_ISA::attention_bf16,
};

}  // namespace ventoux
