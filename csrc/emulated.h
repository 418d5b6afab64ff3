// For tests: the bf16 and tile instructions in AVX-512, step by step as Intel's manual defines them, so that the code
// around them runs on machines without. Where the hardware would fault, this throws.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include <immintrin.h>

namespace ventoux {
namespace VENTOUX_ISA {

// Subnormal inputs count as zero, subnormal results become zero; the sign stays.
inline __m512 flush(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  return _mm512_castsi512_ps(_mm512_mask_and_epi32(bits, tiny, bits, _mm512_set1_epi32(int(0x80000000))));
}
inline __m512 multiply_add(__m512 a, __m512 b, __m512 c) {
  return flush(_mm512_fmadd_ps(flush(a), flush(b), flush(c)));
}
inline __m512 even_halves(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
inline __m512 odd_halves(__m512i x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000))));
}

// VDPBF16PS. Not inlined: it stands in every unrolled product.
inline __attribute__((noinline)) __m512 dpbf16(__m512 acc, __m512i a, __m512i b) {
  acc = multiply_add(odd_halves(a), odd_halves(b), acc);
  return multiply_add(even_halves(a), even_halves(b), acc);
}

// The tiles of a thread.
struct EmulatedTiles {
  struct Tile {
    int rows = 0, bytes = 0;  // as configured; none: using the tile faults
    uint32_t lane[16][16] = {};
    Tile& used() {
      if (rows == 0 || bytes == 0) throw std::logic_error("a tile that is not configured");
      return *this;
    }
  };
  Tile tile[8];
  static EmulatedTiles& mine() {
    static thread_local EmulatedTiles tiles;
    return tiles;
  }
};

// TDPBF16PS: c += a b. Even and odd columns have a chain each, from zero; their sum is added to c.
inline void dp_tiles(EmulatedTiles::Tile& c, const EmulatedTiles::Tile& a, const EmulatedTiles::Tile& b) {
  if (c.rows != a.rows || c.bytes != b.bytes || a.bytes != 4 * b.rows) throw std::logic_error("tiles that do not fit");
  for (int m = 0; m < c.rows; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < a.bytes / 4; ++k) {
      const __m512i left = _mm512_set1_epi32(int(a.lane[m][k])), right = _mm512_loadu_si512(b.lane[k]);
      even = multiply_add(even_halves(left), even_halves(right), even);
      odd = multiply_add(odd_halves(left), odd_halves(right), odd);
    }
    const __m512 sum = flush(_mm512_add_ps(flush(even), flush(odd)));
    const __mmask16 columns = __mmask16((1u << (c.bytes / 4)) - 1);
    const __m512 total = flush(_mm512_add_ps(flush(_mm512_loadu_ps(c.lane[m])), sum));
    _mm512_storeu_ps(c.lane[m], _mm512_maskz_mov_ps(columns, total));
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
