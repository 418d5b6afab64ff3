// The product of vector code with NVFP4 weights: activations in fixed point, digits times codes in whole numbers.
//
// Widening 4-bit codes to floats takes more instructions than memory takes time to bring them. So codes stay bytes: an
// e2m1 code doubled is a whole number, and one table look-up gives 64 of them. An activation is its row's unit, a power
// of two, times a whole number of 23 bits: three digits of 8. Multiplying bytes and adding four products to a sum is
// one instruction (VNNI) or three. The sum within a group is exact; its product with the group's scale rounds.
//
// What is below 2^-22 of a row's largest value is lost, which is less than the rounding of an fp32 sum that holds that
// value. bf16 values down to 2^-14 of the largest are exact.
//
// Order of a result: 16 lanes, each with 8 columns of half a group; one chain of fused multiply-adds per lane over
// blocks of 128 columns in rising order; the tree of sum4.
#pragma once

#include <bit>

#include "dot.h"

namespace ventoux {

// e2m1 by code, doubled, plus kOffset: unsigned, as the instructions want one of the factors.
constexpr int kOffset = 12;
alignas(16) inline constexpr uint8_t kDoubledCodes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

namespace VENTOUX_ISA {

constexpr int kFixedBlock = 128;  // columns: 64 bytes of codes, 8 groups
constexpr int kGroup = 16;        // columns that share a scale
constexpr int kDigits = 3;        // the highest first
constexpr int kBits = 21;         // of the whole numbers, behind their leading one

// 128 columns of one activation: digits of the even ones, then of the odd ones, as nibbles lie in bytes.
struct alignas(64) FixedBlock {
  int8_t digits[kDigits][2][kFixedBlock / 2];
  int32_t correction[kLanes];  // what kOffset adds to a lane's sum, negative
};

inline int64_t fixed_blocks(int64_t cols) { return (cols + kFixedBlock - 1) / kFixedBlock; }

// Of exponents that a normal float has.
inline float power_of_two(int exponent) { return std::bit_cast<float>(uint32_t(exponent + 127) << 23); }

// Largest magnitude of a row; NaN if one is NaN or infinite.
inline float largest_of(const float* split, int64_t width) {
  V largest = zero(), broken = zero();
  for (int64_t i = 0; i < width; i += kLanes) {
    const V x = load(split + i);
    largest = max(largest, max(x, zero() - x));
    broken = fma(x, zero(), broken);
  }
  float lanes[kLanes], nans[kLanes];
  store(lanes, largest);
  store(nans, broken);
  for (int i = 0; i < kLanes; ++i) {
    if (nans[i] != nans[i]) return NAN;
    lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  }
  return lanes[0];
}

// One split row -> fixed point. Returns what the lanes of its results are multiplied with: NaN if the row is broken.
inline float fix_row(const float* split, int64_t cols, FixedBlock* to) {
  // 1.5 x 2^23: added to a number that is below 2^22, it leaves that, rounded, in the low bits.
  constexpr float kRound = 12582912.0f;
  const int64_t width = padded(cols);
  const float largest = largest_of(split, width);
  const bool broken = largest != largest;
  // Rows below 2^-100 count as that large: the factor would be no float.
  const int exponent = broken ? 0 : std::max(int(std::bit_cast<uint32_t>(largest) >> 23) - 127, -100);
  const V factor = splat(power_of_two(kBits - exponent));
  for (int64_t at = 0; at < fixed_blocks(cols) * kFixedBlock; at += kBlock) {
    FixedBlock& block = to[at / kFixedBlock];
    const int64_t byte = at % kFixedBlock / 2;
    int32_t* correction = block.correction + byte / 4;
    for (int q = 0; q < kLanes / 4; ++q) correction[q] = 0;
    for (int odd = 0; odd < 2; ++odd) {
      const V x = at < width && !broken ? load(split + at + odd * kLanes) : zero();
      float rounded[kLanes];
      store(rounded, fma(x, factor, splat(kRound)));
      int32_t values[kLanes];
      for (int j = 0; j < kLanes; ++j)
        values[j] = std::bit_cast<int32_t>(rounded[j]) - std::bit_cast<int32_t>(kRound);
      for (int q = 0; q < kLanes / 4; ++q)
        correction[q] -= kOffset * (values[4 * q] + values[4 * q + 1] + values[4 * q + 2] + values[4 * q + 3]);
      for (int d = kDigits - 1; d >= 0; --d) {
        for (int j = 0; j < kLanes; ++j) block.digits[d][odd][byte + j] = int8_t(values[j]);
        for (int j = 0; j < kLanes; ++j) values[j] = (values[j] + 128) >> 8;
      }
    }
  }
  // Codes are doubled, and group scales are read as 2^-8 of what they are.
  return broken ? NAN : power_of_two(exponent - kBits + 8 - 1);
}

// CodeBlock: doubled codes plus kOffset of 128 columns, and 2^-8 of the scale of each lane's group.

#if defined(__AVX2__)
// 8 groups have two lanes each.
inline V lane_scales(const uint8_t* groups) {
  const __m256i place = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3,  //
                                         -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
  int64_t all;
  std::memcpy(&all, groups, 8);
  return from_halves(halves(_mm256_shuffle_epi8(_mm256_set1_epi64x(all), place)));
}
#endif

#if defined(__AVX512F__)

struct CodeBlock {
  __m512i even, odd;
  V scale;
  CodeBlock() = default;
  CodeBlock(const uint8_t* codes, const uint8_t* groups) : scale(lane_scales(groups)) {
    const __m512i low = _mm512_set1_epi8(15), raw = _mm512_loadu_si512(codes);
    const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kDoubledCodes)));
    even = _mm512_shuffle_epi8(table, _mm512_and_si512(raw, low));
    odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(raw, 4), low));
  }
  // sum + products with one digit
  __m512i add(__m512i sum, const int8_t (*digit)[kFixedBlock / 2]) const {
    const __m512i x = _mm512_load_si512(digit[0]), y = _mm512_load_si512(digit[1]);
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, even, x), odd, y);
#else
    const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(even, x), _mm512_maddubs_epi16(odd, y));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
  }
  // A sum for each digit: one chain through all three would be as long as what the processor can look ahead.
  V products(const FixedBlock& x) const {
    const __m512i high = add(_mm512_setzero_si512(), x.digits[0]), middle = add(_mm512_setzero_si512(), x.digits[1]);
    const __m512i low = add(_mm512_load_si512(x.correction), x.digits[2]);
    const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(high, 8), middle);
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(upper, 8), low))};
  }
};

#elif defined(__AVX2__)

struct CodeBlock {
  __m256i even[2], odd[2];
  V scale;
  CodeBlock() = default;
  CodeBlock(const uint8_t* codes, const uint8_t* groups) : scale(lane_scales(groups)) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kDoubledCodes)));
    for (int h = 0; h < 2; ++h) {
      const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + h);
      even[h] = _mm256_shuffle_epi8(table, _mm256_and_si256(raw, low));
      odd[h] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(raw, 4), low));
    }
  }
  __m256i add(int h, __m256i sum, const int8_t (*digit)[kFixedBlock / 2]) const {
    const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(digit[0]) + h);
    const __m256i y = _mm256_load_si256(reinterpret_cast<const __m256i*>(digit[1]) + h);
    // Four products of 24 x 128 at most: 16 bits hold them.
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(even[h], x), _mm256_maddubs_epi16(odd[h], y));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  __m256 half(int h, const FixedBlock& x) const {
    __m256i sum = add(h, _mm256_load_si256(reinterpret_cast<const __m256i*>(x.correction) + h), x.digits[2]);
    __m256i high = add(h, _mm256_setzero_si256(), x.digits[0]);
    high = add(h, _mm256_slli_epi32(high, 8), x.digits[1]);
    return _mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_slli_epi32(high, 8)));
  }
  V products(const FixedBlock& x) const { return {half(0, x), half(1, x)}; }
};

#else

struct CodeBlock {
  int32_t even[kFixedBlock / 2], odd[kFixedBlock / 2];
  V scale;
  CodeBlock() = default;
  CodeBlock(const uint8_t* codes, const uint8_t* groups) {
    for (int j = 0; j < kFixedBlock / 2; ++j) {
      even[j] = kDoubledCodes[codes[j] & 15];
      odd[j] = kDoubledCodes[codes[j] >> 4];
    }
    scale = lanes([&](int i) { return kE4m3.value[groups[i / 2]] / 256; });
  }
  V products(const FixedBlock& x) const {
    return lanes([&](int i) {
      int32_t sum = 0;
      for (const auto& digit : x.digits) {
        sum *= 256;
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += even[j] * digit[0][j] + odd[j] * digit[1][j];
      }
      return float(sum + x.correction[i]);
    });
  }
};

#endif

// One row of codes with its group scales; the last block is shorter where the width is no multiple of 128.
struct CodeRow {
  const uint8_t* codes;
  const uint8_t* groups;
  CodeRow() = default;
  CodeRow(const uint8_t* codes, const uint8_t* groups) : codes(codes), groups(groups) {}
  CodeRow(const Weight& w, int64_t r) : CodeRow(w.row(r), w.row_groups(r)) {}
  CodeBlock block(int64_t b) const {
    return {codes + b * kFixedBlock / 2, groups + b * (kFixedBlock / kGroup)};
  }
  CodeRow ahead(int64_t rows, int64_t cols) const {
    return {codes + rows * (cols / 2), groups + rows * (cols / kGroup)};
  }
  CodeBlock tail(int64_t b, int64_t count) const {
    uint8_t rest[kFixedBlock / 2] = {}, scales[kFixedBlock / kGroup] = {};
    std::memcpy(rest, codes + b * kFixedBlock / 2, size_t(count / 2));
    std::memcpy(scales, groups + b * (kFixedBlock / kGroup), size_t(count / kGroup));
    return {rest, scales};
  }
};

// Activations, row by row; a unit is what the results of its row are multiplied with.
struct FixedRows {
  FixedBlock* blocks = nullptr;
  float* units = nullptr;
  int64_t row_blocks = 0;
};

constexpr int kMaxFixed = 8;   // activations side by side
constexpr int kFixedRows = 4;  // weight rows of a call
// How far ahead weights are fetched, in rows: some hundred nanoseconds with one activation.
constexpr int kFixedAhead = 8;

// The lanes of R rows and M activations: sums[r][m].
template <int R, int M>
inline __attribute__((always_inline)) void fixed_lanes(const CodeRow* w, const FixedBlock* const* x, int64_t cols,
                                                       V (*sums)[M]) {
  V acc[R][M];
  for (auto& row : acc)
    for (V& lane : row) lane = zero();
  auto add = [&](const CodeBlock* codes, int64_t b) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][m] = fma(codes[r].products(x[m][b]), codes[r].scale, acc[r][m]);
  };
  // What comes next is fetched in the order of its addresses, which the hardware's own prefetcher then recognizes.
  const CodeRow ahead = w->ahead(kFixedAhead, cols);
  CodeBlock codes[R];
  const int64_t whole = cols / kFixedBlock;
  for (int64_t b = 0; b < whole; ++b) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(ahead.codes + (b * R + r) * (kFixedBlock / 2), 0, 3);
      codes[r] = w[r].block(b);
    }
    __builtin_prefetch(ahead.groups + b * R * (kFixedBlock / kGroup), 0, 3);
    add(codes, b);
  }
  if (const int64_t rest = cols % kFixedBlock) {
    for (int r = 0; r < R; ++r) codes[r] = w[r].tail(whole, rest);
    add(codes, whole);
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sums[r][m] = acc[r][m];
}

// out[m * ld + r] = <row r, activation m>
template <int M>
__attribute__((noinline)) void fixed_block(const CodeRow* w, const FixedBlock* const* x, const float* units,
                                           int64_t cols, float* out, int64_t ld) {
  // As many chains as there are registers to hold them.
  constexpr int R = M == 1 ? 4 : 2;
  V sums[kFixedRows][M];
  for (int r = 0; r < kFixedRows; r += R) fixed_lanes<R, M>(w + r, x, cols, sums + r);
  for (int m = 0; m < M; ++m) {
    float* to = out + m * ld;
    sum4(sums[0][m], sums[1][m], sums[2][m], sums[3][m], to);
    for (int r = 0; r < kFixedRows; ++r) to[r] *= units[m];
  }
}

// out[m * ld + i] for rows first .. first + count - 1, row multipliers not applied.
inline void code_dots(const Weight& weight, int64_t first, int64_t count, int num_x, const FixedBlock* const* x,
                      const float* units, float* out, int64_t ld) {
  CodeRow w[kFixedRows];
  float edge[kMaxFixed * kFixedRows];
  for (int64_t r = 0; r < count; r += kFixedRows) {
    const int here = int(std::min<int64_t>(kFixedRows, count - r));
    for (int i = 0; i < kFixedRows; ++i) w[i] = CodeRow(weight, first + r + std::min(i, here - 1));
    float* to = here == kFixedRows ? out + r : edge;
    const int64_t to_ld = here == kFixedRows ? ld : kFixedRows;
    switch (num_x) {
      case 1: fixed_block<1>(w, x, units, weight.cols, to, to_ld); break;
      case 2: fixed_block<2>(w, x, units, weight.cols, to, to_ld); break;
      case 3: fixed_block<3>(w, x, units, weight.cols, to, to_ld); break;
      case 4: fixed_block<4>(w, x, units, weight.cols, to, to_ld); break;
      case 5: fixed_block<5>(w, x, units, weight.cols, to, to_ld); break;
      case 6: fixed_block<6>(w, x, units, weight.cols, to, to_ld); break;
      case 7: fixed_block<7>(w, x, units, weight.cols, to, to_ld); break;
      case 8: fixed_block<8>(w, x, units, weight.cols, to, to_ld); break;
    }
    if (here != kFixedRows)
      for (int m = 0; m < num_x; ++m)
        for (int i = 0; i < here; ++i) out[m * ld + r + i] = edge[m * kFixedRows + i];
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
