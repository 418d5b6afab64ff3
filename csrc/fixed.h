// NVFP4 weights in whole numbers, times activations in block floating point (see codes.h).
//
// Widening 4-bit codes to floats takes more instructions than memory takes time to bring them. So codes become 16-bit
// words, 32 of them by one table look-up: an e2m1 code doubled is a whole number. Eight activations share a unit, a
// power of two, and are whole numbers of 16 bits times that. Multiplying words and adding two products to a sum is one
// instruction (VNNI) or two. The sum of eight products is exact; its product with the group's scale and the unit
// rounds.
//
// What is below 2^-15 of the largest of its eight is lost, a hundredth of what bf16 rounds off that one. bf16 values
// down to 2^-7 of the largest are exact.
#pragma once

#include <bit>

#include "codes.h"

namespace ventoux {

// e2m1 by code, doubled.
alignas(16) inline constexpr int8_t kDoubledCodes[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

namespace VENTOUX_ISA {

constexpr int kShared = 8;  // columns that share a unit: a lane's
constexpr int kBits = 14;   // of the whole numbers, behind their leading one

// 128 columns of one activation, as codes lie in words: column 4 i + n is values[n][i].
struct alignas(64) FixedBlock {
  int16_t values[kNibbles][kCodeBlock / kNibbles];
  float units[kLanes];
};

// Of exponents that a normal float has.
inline float power_of_two(int exponent) { return std::bit_cast<float>(uint32_t(exponent + 127) << 23); }

// One split row -> fixed point. The unit of what is not finite is NaN.
inline void fix_row(const float* split, int64_t cols, FixedBlock* to) {
  // 1.5 x 2^23: added to a number that is below 2^22, it leaves that, rounded, in the low bits.
  constexpr float kRound = 12582912.0f, kMost = 32767.0f;
  const int64_t width = padded(cols);
  for (int64_t at = 0; at < code_blocks(cols) * kCodeBlock; at += kBlock) {
    FixedBlock& block = to[at / kCodeBlock];
    const int64_t first = at % kCodeBlock / kShared;  // of four lanes
    const V even = at < width ? load(split + at) : zero(), odd = at < width ? load(split + at + kLanes) : zero();
    float largest[kLanes], broken[kLanes], factors[kLanes];
    store(largest, max(max(even, zero() - even), max(odd, zero() - odd)));
    store(broken, fma(even, zero(), odd * zero()));  // zero, or NaN where one is not finite
    for (int q = 0; q < kLanes / 4; ++q) {
      float most = largest[4 * q], none = broken[4 * q];
      for (int j = 4 * q + 1; j < 4 * q + 4; ++j) {
        most = largest[j] > most ? largest[j] : most;
        none += broken[j];
      }
      // Below 2^-100 counts as that large: the factor would be no float.
      const int exponent = std::max(int(std::bit_cast<uint32_t>(most) >> 23) - 127, -100);
      for (int j = 4 * q; j < 4 * q + 4; ++j) factors[j] = power_of_two(kBits - exponent);
      // Codes are doubled and in the upper bytes of their words; group scales are read as 2^-8 of what they are.
      block.units[first + q] = power_of_two(exponent - kBits - 1) + none;
    }
    const V factor = load(factors), sums[] = {even, odd};
    for (int o = 0; o < 2; ++o) {
      float rounded[kLanes];
      store(rounded, min(fma(sums[o], factor, splat(kRound)), splat(kRound + kMost)));
      for (int j = 0; j < kLanes; ++j)
        block.values[o + j % 2 * 2][(at % kCodeBlock) / 4 + j / 2] = int16_t(std::bit_cast<int32_t>(rounded[j]));
    }
  }
}

// FixedCodes: doubled codes of 128 columns in the upper bytes of words, and 2^-8 of the scale of each lane's group.

#if defined(__AVX512F__)

struct FixedCodes {
  __m512i codes[kNibbles];
  V scale;
  FixedCodes() = default;
  FixedCodes(const uint8_t* from, const uint8_t* groups) : scale(lane_scales(groups)) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kDoubledCodes)));
    const __m512i nibble = _mm512_set1_epi8(15), upper = _mm512_set1_epi16(int16_t(0xff00));
    const __m512i raw = _mm512_loadu_si512(from);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(raw, nibble));
    const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble));
    codes[0] = _mm512_slli_epi16(low, 8);
    codes[1] = _mm512_slli_epi16(high, 8);
    codes[2] = _mm512_and_si512(low, upper);
    codes[3] = _mm512_and_si512(high, upper);
  }
  V products(const FixedBlock& x) const {
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int n = 0; n < kNibbles; ++n) {
#if defined(__AVX512VNNI__)
      sum = _mm512_dpwssd_epi32(sum, codes[n], _mm512_load_si512(x.values[n]));
#else
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(codes[n], _mm512_load_si512(x.values[n])));
#endif
    }
    return {_mm512_cvtepi32_ps(sum)};
  }
};

#elif defined(__AVX2__)

struct FixedCodes {
  __m256i codes[2][kNibbles];
  V scale;
  FixedCodes() = default;
  FixedCodes(const uint8_t* from, const uint8_t* groups) : scale(lane_scales(groups)) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kDoubledCodes)));
    const __m256i nibble = _mm256_set1_epi8(15), upper = _mm256_set1_epi16(int16_t(0xff00));
    for (int h = 0; h < 2; ++h) {
      const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + h);
      const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(raw, nibble));
      const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(raw, 4), nibble));
      codes[h][0] = _mm256_slli_epi16(low, 8);
      codes[h][1] = _mm256_slli_epi16(high, 8);
      codes[h][2] = _mm256_and_si256(low, upper);
      codes[h][3] = _mm256_and_si256(high, upper);
    }
  }
  __m256 half(int h, const FixedBlock& x) const {
    __m256i sum = _mm256_setzero_si256();
    for (int n = 0; n < kNibbles; ++n) {
      const __m256i value = _mm256_load_si256(reinterpret_cast<const __m256i*>(x.values[n]) + h);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes[h][n], value));
    }
    return _mm256_cvtepi32_ps(sum);
  }
  V products(const FixedBlock& x) const { return {half(0, x), half(1, x)}; }
};

#else

struct FixedCodes {
  int32_t codes[kCodeBlock];
  V scale;
  FixedCodes() = default;
  FixedCodes(const uint8_t* from, const uint8_t* groups) {
    for (int j = 0; j < kCodeBlock; ++j) codes[j] = kDoubledCodes[from[j / 2] >> j % 2 * 4 & 15] * 256;
    scale = lanes([&](int i) { return kE4m3.value[groups[i / 2]] / 256; });
  }
  V products(const FixedBlock& x) const {
    return lanes([&](int i) {
      int32_t sum = 0;
      for (int j = i * kShared; j < (i + 1) * kShared; ++j) sum += codes[j] * x.values[j % kNibbles][j / kNibbles];
      return float(sum);
    });
  }
};

#endif

struct Fixed {
  using Block = FixedBlock;
  using Codes = FixedCodes;
  static V step(const FixedCodes& w, const FixedBlock& x, V sum) {
    return fma(w.products(x), w.scale * load(x.units), sum);
  }
  static void deal(const float* split, int64_t cols, FixedBlock* to) { fix_row(split, cols, to); }
};

}  // namespace VENTOUX_ISA
}  // namespace ventoux
