// The operators, as one table of functions per instruction set. Shapes are those of ops/spec.py.
#pragma once

#include <cstdint>

#include "pool.h"
#include "weights.h"

namespace ventoux {

struct Rope {
  const float* cos;  // [T, R / 2]
  const float* sin;
  int64_t width;  // R
};

// Sequence i owns the next lengths[i] packed tokens, the last of its contexts[i] cached ones; its cached token j lies
// in row pages[i * max_pages + j / page_size] * page_size + j % page_size of the cache.
struct Layout {
  const int64_t* lengths;
  const int64_t* contexts;
  const int64_t* pages;
  int64_t num_sequences;
  int64_t max_pages;
  int64_t page_size;
};

struct Attention {
  int64_t heads, nope, latent, value;  // H, N, C, O
  float scale;
  Rope rope;
  const float* query_scales;  // [T]
};

struct Routed {
  const int64_t* expert_ids;  // [T, K]
  const float* weights;       // [T, K]
  int64_t top_k;
  int64_t num_experts;
  Weight gate_up;  // [E, 2F, D]: gate rows, then up rows
  Weight down;     // [E, D, F]
};

struct Mlp {
  Weight gate, up, down;  // data is null where there is no such expert
};

// One row, scanned: whether all values are finite; if so, the place of the first of the largest, else 0.
struct Scanned {
  bool finite;
  int64_t largest;
};

struct Kernels {
  const char* name;
  void (*add)(Pool&, Rows x, Rows y);  // x += y
  void (*rms_norm)(Pool&, Rows x, Rows weight, float eps, Rows out);
  void (*linear)(Pool&, Rows x, const Weight& weight, Rows out);
  // route: probabilities over all experts, the k largest (lower ids first among equals), renormalised, times the scale
  void (*route)(Pool&, Rows x, const Weight& gate, int64_t top_k, float scale, float* weights, int64_t* expert_ids);
  void (*moe)(Pool&, Rows x, const Routed& routed, const Mlp& shared, Rows out);
  // write_latent: norm and rope of the rows [latent | rope key], into rows `slots` of the cache
  void (*write_latent)(Pool&, Rows rows, Rows norm, float eps, Rope rope, Rows cache, const int64_t* slots);
  void (*attention)(Pool&, Rows q, const Weight& kv_b, Rows cache, const Layout& layout, const Attention& how,
                    Rows out);
  void (*scan)(Pool&, Rows x, Scanned* scanned);
};

// What a machine that multiplies bf16 does otherwise than kAvx512: products of bf16 activations with weights in any
// format but fp32, and of bf16 queries with a bf16 cache. All else, fp32 activations among it, is kAvx512's.
struct Products {
  const char* name;
  decltype(Kernels::linear) linear;
  decltype(Kernels::moe) moe;
  decltype(Kernels::attention) attention;
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512, kAvx512Vnni;
extern const Products kAvx512Bf16, kAmx, kAvx512Bf16Emulated, kAmxEmulated;
#endif

}  // namespace ventoux
