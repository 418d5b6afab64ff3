// Weighted sums of stored rows: what attention makes of cached latents, and absorbed queries of the rows of W_UK.
#pragma once

#include "dot.h"

namespace ventoux {
namespace VENTOUX_ISA {

// out[m][c] += sum_s p[m][s] v[s][c] for M rows and `blocks` split blocks of the cached rows, keys in rising order.
template <int M, int B, class Reader>
inline __attribute__((always_inline)) void weigh_block(const float* p, int64_t p_ld, const Reader* keys,
                                                       int64_t num_keys, int64_t first_block, int64_t cols, float* out,
                                                       int64_t ld) {
  V even[M][B], odd[M][B];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      even[m][b] = load(out + m * ld + (first_block + b) * kBlock);
      odd[m][b] = load(out + m * ld + (first_block + b) * kBlock + kLanes);
    }
  for (int64_t s = 0; s < num_keys; ++s) {
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      const int64_t at = first_block + b, left = cols - at * kBlock;
      const Pair v = left >= kBlock ? keys[s].block(at) : keys[s].tail(at, left);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const V weight = splat(p[m * p_ld + s]);
        even[m][b] = fma(weight, v.even, even[m][b]);
        odd[m][b] = fma(weight, v.odd, odd[m][b]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      store(out + m * ld + (first_block + b) * kBlock, even[m][b]);
      store(out + m * ld + (first_block + b) * kBlock + kLanes, odd[m][b]);
    }
}

template <class Reader>
inline void weigh(int num_rows, const float* p, int64_t p_ld, const Reader* keys, int64_t num_keys, int64_t blocks,
                  int64_t cols, float* out, int64_t ld) {
  constexpr int kRows = kMaxM == 6 ? 6 : 2;
  for (int m = 0; m < num_rows; m += kRows) {
    const int here = std::min(kRows, num_rows - m);
    for (int64_t b = 0; b < blocks; b += 2) {
      auto go = [&]<int M>() {
        const float* from = p + m * p_ld;
        float* to = out + m * ld;
        if (b + 1 < blocks) {
          weigh_block<M, 2>(from, p_ld, keys, num_keys, b, cols, to, ld);
        } else {
          weigh_block<M, 1>(from, p_ld, keys, num_keys, b, cols, to, ld);
        }
      };
      switch (here) {
        case 1: go.template operator()<1>(); break;
        case 2: go.template operator()<2>(); break;
        case 3: go.template operator()<3>(); break;
        case 4: go.template operator()<4>(); break;
        case 5: go.template operator()<5>(); break;
        case 6: go.template operator()<6>(); break;
      }
    }
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
