// What products of 16 by 16 have in common, whether tile registers compute them (tile_product.h) or vectors
// (vector_tiles.h): where rows lie, and how they are turned into columns.
#pragma once

#include "bf16.h"

namespace ventoux {
namespace VENTOUX_ISA {

constexpr int kTile = 16;  // rows of a tile, and activations of a block
constexpr int kColumnPairs = kBlock / 2;  // of a block

// to[c * pitch + r] = value c of row r, all of 32 bits: `rows` rows of `cols` values, 16 each at most. `load(r)`
// gives a row.
template <class Load>
inline __attribute__((always_inline)) void transpose(const Load& load, int rows, int cols, void* to, int64_t pitch) {
  __m512i a[kTile], b[kTile];
#pragma GCC unroll 16
  for (int r = 0; r < kTile; ++r) a[r] = r < rows ? load(r) : _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < kTile; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTile; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 i + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 i .. 4 i + 3, a quarter each.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), odd0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
    const __m512i even1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
    const __m512i odd1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
    b[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    b[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    b[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
    b[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
  }
  const __mmask16 kept = __mmask16((1u << rows) - 1);
#pragma GCC unroll 16
  for (int c = 0; c < kTile; ++c)
    if (c < cols) _mm512_mask_storeu_epi32(static_cast<uint32_t*>(to) + c * pitch, kept, b[c]);
}

// Up to two tiles of rows, `pitch` bytes from one row to the next. As many from `next` on, where that is not null, are
// fetched meanwhile.
struct TileRows {
  int64_t pitch;
  const char* at[2];
  const char* next[2] = {};
};
// Two tiles, one behind the other. Those to fetch lie `ahead` bytes further, if that is not zero.
inline TileRows two_tiles(const char* rows, int64_t pitch, int64_t ahead = 0) {
  TileRows w{pitch, {rows, rows + kTile * pitch}};
  for (int t = 0; t < 2 && ahead; ++t) w.next[t] = w.at[t] + ahead;
  return w;
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
