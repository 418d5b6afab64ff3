// What attention asks of tiles (tile_product.h), by vectors that multiply bf16: a query in each lane, the value that it
// is multiplied with in all of them. One chain for each result, over the columns in rising order.
#pragma once

#include "tile_rows.h"

namespace ventoux {
namespace VENTOUX_ISA {

struct TileScope {
  TileScope(int, int) {}
};

// out[row * ld + column] = R x B tiles of sums
template <int R, int B>
inline void multiply_tiles(const TileRows& w, int64_t blocks, const char* const* x, const int64_t* x_pitch, float* out,
                           int64_t ld) {
  // 16 chains: with 24, rows of two tiles would be cut across.
  constexpr int kRows = kTile / B;
  for (int first = 0; first < R * kTile; first += kRows) {
    const int64_t begin = first % kTile * w.pitch;
    const char* rows = w.at[first / kTile] + begin;
    const char* next = w.next[first / kTile] ? w.next[first / kTile] + begin : nullptr;
    V sums[kRows][B];
    for (auto& row : sums)
      for (V& sum : row) sum = zero();
    for (int64_t i = 0; i < blocks; ++i) {
      if (next)
        for (int r = 0; r < kRows; ++r) __builtin_prefetch(next + i * 2 * kBlock + r * w.pitch, 0, 2);
      for (int64_t k = i * kColumnPairs; k < (i + 1) * kColumnPairs; ++k) {
        __m512i columns[B];
#pragma GCC unroll 2
        for (int b = 0; b < B; ++b) columns[b] = _mm512_loadu_si512(x[b] + k * x_pitch[b]);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          int32_t pair;
          std::memcpy(&pair, rows + r * w.pitch + k * 4, 4);
#pragma GCC unroll 2
          for (int b = 0; b < B; ++b) sums[r][b] = {dpbf16(sums[r][b].v, _mm512_set1_epi32(pair), columns[b])};
        }
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int b = 0; b < B; ++b) store(out + (first + r) * ld + b * kTile, sums[r][b]);
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
