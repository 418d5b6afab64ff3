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
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      even[m][b] = load(out + m * ld + (first_block + b) * kBlock);
      odd[m][b] = load(out + m * ld + (first_block + b) * kBlock + kLanes);
    }
  for (int64_t s = 0; s < num_keys; ++s) {
#pragma GCC unroll 8
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
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      store(out + m * ld + (first_block + b) * kBlock, even[m][b]);
      store(out + m * ld + (first_block + b) * kBlock + kLanes, odd[m][b]);
    }
}

template <class Reader>
inline void weigh(int num_rows, const float* p, int64_t p_ld, const Reader* keys, int64_t num_keys, int64_t blocks,
                  int64_t cols, float* out, int64_t ld) {
  for (int m = 0; m < num_rows; m += kMaxM) {
    with_number<kMaxM>(std::min(kMaxM, num_rows - m), [&]<int M>() {
      // One row has registers for many columns: what it weighs may come from memory, read from end to end. A decode
      // step's attention took 1.06 to 1.15 times as long by two blocks at a time.
      constexpr int kMost = M == 1 && kMaxM == 6 ? 8 : 2;
      auto go = [&]<int B>(int64_t b) {
        weigh_block<M, B>(p + m * p_ld, p_ld, keys, num_keys, b, cols, out + m * ld, ld);
      };
      int64_t b = 0;
      for (; b + kMost <= blocks; b += kMost) go.template operator()<kMost>(b);
      for (; b + 2 <= blocks; b += 2) go.template operator()<2>(b);
      if (b < blocks) go.template operator()<1>(b);
    });
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
