// Arithmetic of machines that multiply bf16: 32 columns of a weight as bf16, in their order, whatever they are stored
// as. Vector code multiplies NVFP4 codes unscaled, in an order of its own (Words, below).
//
// No format loses anything by it: e4m3 has 4 significant bits, and an e2m1 code times its e4m3 group scale has 6, of
// the 8 that bf16 holds. The row's multiplier is applied to the finished dot product, in fp32.
#pragma once

#include <bit>

#include "codes.h"

#if defined(VENTOUX_EMULATED)
#include "emulated.h"
#endif

namespace ventoux {

// e2m1 code times group scale, both as stored: a row of 16 products per scale. Made by the compiler, as kE4m3 is.
struct Nvfp4Products {
  alignas(64) uint16_t bf16[256][16] = {};
  constexpr Nvfp4Products() {
    constexpr float codes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (int scale = 0; scale < 256; ++scale)
      for (int code = 0; code < 16; ++code) {
        const float product = codes[code & 7] * kE4m3.value[scale];
        bf16[scale][code] = uint16_t((std::bit_cast<uint32_t>(product) >> 16) ^ (code & 8 ? 0x8000 : 0));
      }
  }
};
inline constexpr Nvfp4Products kNvfp4Products;

namespace VENTOUX_ISA {

#if !defined(VENTOUX_EMULATED) && defined(__AVX512BF16__)
// Lane i: acc + a[2i + 1] b[2i + 1], then + a[2i] b[2i], each rounded once; subnormal numbers count as zero.
inline __m512 dpbf16(__m512 acc, __m512i a, __m512i b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
#endif

inline __m512i widen_fp8(const void* codes) {
  // m / 512 of the codes below 8, which are subnormal
  alignas(64) static constexpr uint16_t small[32] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
  const __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(codes)));
  const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi16(0x7f));
  const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(0x80)), 8);
  // Exponent and mantissa move into place; the exponent is 120 too small.
  const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  const __mmask32 is_small = _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8));
  const __m512i value = _mm512_mask_permutexvar_epi16(normal, is_small, magnitude, _mm512_load_si512(small));
  return _mm512_or_si512(value, sign);
}

inline __m512i widen_nvfp4(const void* codes, uint8_t scale0, uint8_t scale1) {
  auto row = [](uint8_t scale) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(kNvfp4Products.bf16[scale]));
  };
  const __m512i table = _mm512_inserti64x4(_mm512_castsi256_si512(row(scale0)), row(scale1), 1);
  // Each byte to a lane of 32 bits, its low nibble in the lower half of that, its high nibble in the upper one. The
  // second group looks up entries 16 to 31.
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(codes)));
  const __m512i nibbles = _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)), _mm512_set1_epi16(15));
  const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
  return _mm512_permutexvar_epi16(_mm512_or_si512(nibbles, second), table);
}

struct Nvfp4Reader {
  const uint8_t* p;
  const uint8_t* groups;
  Nvfp4Reader() = default;
  Nvfp4Reader(const Weight& w, int64_t r) : p(w.row(r)), groups(w.row_groups(r)) {}
  const uint8_t* line(int64_t i) const { return p + i * kBlock / 2; }
};

struct Bf16 {
  using Element = uint16_t;  // in order, zeros after the last column up to a multiple of 32
  static constexpr bool kTakesF32 = false;
  static constexpr bool kWidensFp8 = true;
  static constexpr int64_t kWidenAhead = 32;  // rows: those are fetched while a row is widened
  static float unit(Format) { return 1.0f; }

  static constexpr int kParts = 1;
  template <int, class Reader>
  static __m512i part(const Reader& w, int64_t i) {
    return block(w, i);
  }
  static __m512i block(const Bf16Reader& w, int64_t i) { return _mm512_loadu_si512(w.p + i * 2 * kBlock); }
  static __m512i block(const Fp8Reader& w, int64_t i) { return widen_fp8(w.p + i * kBlock); }
  static __m512i block(const Nvfp4Reader& w, int64_t i) {
    return widen_nvfp4(w.p + i * kBlock / 2, w.groups[2 * i], w.groups[2 * i + 1]);
  }
  template <int, class Reader>
  static __m512i tail(const Reader& w, int64_t i, int64_t count) {
    return rest(w, i, count);
  }
  static __m512i rest(const Bf16Reader& w, int64_t i, int64_t count) {
    return _mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << count) - 1), w.p + i * 2 * kBlock);
  }
  static __m512i rest(const Fp8Reader& w, int64_t i, int64_t count) {
    uint8_t codes[kBlock] = {};
    std::memcpy(codes, w.p + i * kBlock, size_t(count));
    return widen_fp8(codes);
  }
  static __m512i rest(const Nvfp4Reader& w, int64_t i, int64_t) {  // columns are a multiple of 16: a tail is one group
    uint8_t codes[kBlock / 2] = {};
    std::memcpy(codes, w.p + i * kBlock / 2, kBlock / 4);
    return widen_nvfp4(codes, w.groups[2 * i], 0);
  }
  // Columns 32 begin .. 32 end - 1 of rows first .. first + count - 1 as bf16, zeros where the matrix ends; `pitch`
  // bytes from one row to the next. They are written in whole blocks, rising.
  static void widen(const Weight& w, int64_t first, int64_t count, int64_t begin, int64_t end, char* to,
                    int64_t pitch) {
    auto go = [&]<class Reader>(Reader*) {
      const int64_t whole = w.cols / kBlock, left = w.cols % kBlock, ahead = kWidenAhead * w.row_bytes();
      for (int64_t r = 0; r < count; ++r) {
        const Reader row(w, first + r);
        for (int64_t i = begin; i < end; ++i) {
          __builtin_prefetch(row.line(i) + ahead, 0, 3);
          const __m512i columns = i < whole ? block(row, i) : rest(row, i, left);
          _mm512_storeu_si512(to + r * pitch + (i - begin) * 2 * kBlock, columns);
        }
      }
    };
    switch (w.format) {
      case Format::kBf16: go(static_cast<Bf16Reader*>(nullptr)); break;
      case Format::kFp8: go(static_cast<Fp8Reader*>(nullptr)); break;
      case Format::kNvfp4: go(static_cast<Nvfp4Reader*>(nullptr)); break;
      case Format::kF32: break;  // never multiplied as bf16
    }
  }
#if defined(VENTOUX_EMULATED) || defined(__AVX512BF16__)
  template <int>
  static V step(__m512i weight, const uint16_t* x, V sum) { return {dpbf16(sum.v, weight, _mm512_loadu_si512(x))}; }
#endif
};

#if defined(VENTOUX_EMULATED) || defined(__AVX512BF16__)

// 128 columns of one activation, as codes lie in words: column 4 i + n is values[n][i].
struct alignas(64) WordBlock {
  uint16_t values[kNibbles][kCodeBlock / kNibbles];
};

// A word of codes looks its own values up: VPERMW takes the five lowest bits for an index, whatever stands above them.
struct WordCodes {
  __m512i codes[kNibbles];
  V scale;
  WordCodes() = default;
  WordCodes(const uint8_t* from, const uint8_t* groups) : scale(lane_scales(groups)) {
    // e2m1 times 2^8, since scales come as 2^-8 of what they are; twice, for either value of the fifth bit.
    alignas(64) static constexpr uint16_t table[32] = {
        0, 0x4300, 0x4380, 0x43c0, 0x4400, 0x4440, 0x4480, 0x44c0,  //
        0x8000, 0xc300, 0xc380, 0xc3c0, 0xc400, 0xc440, 0xc480, 0xc4c0,  //
        0, 0x4300, 0x4380, 0x43c0, 0x4400, 0x4440, 0x4480, 0x44c0,  //
        0x8000, 0xc300, 0xc380, 0xc3c0, 0xc400, 0xc440, 0xc480, 0xc4c0};
    const __m512i values = _mm512_load_si512(table), raw = _mm512_loadu_si512(from);
    codes[0] = _mm512_permutexvar_epi16(raw, values);
    codes[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 4), values);
    codes[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 8), values);
    codes[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(raw, 12), values);
  }
};

// NVFP4 weights as bf16, scaled after the products of a lane's eight columns are summed (see codes.h).
struct Words {
  using Block = WordBlock;
  using Codes = WordCodes;
  static V step(const WordCodes& w, const WordBlock& x, V sum) {
    __m512 products = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int n = 0; n < kNibbles; ++n) products = dpbf16(products, w.codes[n], _mm512_load_si512(x.values[n]));
    return fma({products}, w.scale, sum);
  }
  static void deal(const uint16_t* row, int64_t cols, WordBlock* to) {
    const int64_t width = padded(cols);
    for (int64_t at = 0; at < code_blocks(cols) * kCodeBlock; at += kBlock) {
      const __m512i raw = at < width ? _mm512_loadu_si512(row + at) : _mm512_setzero_si512();
      auto put = [&](int n, __m512i quarter) {
        uint16_t* values = to[at / kCodeBlock].values[n] + at % kCodeBlock / kNibbles;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(values), _mm512_cvtepi64_epi16(quarter));
      };
      put(0, raw);
      put(1, _mm512_srli_epi64(raw, 16));
      put(2, _mm512_srli_epi64(raw, 32));
      put(3, _mm512_srli_epi64(raw, 48));
    }
  }
};

#endif

}  // namespace VENTOUX_ISA
}  // namespace ventoux
