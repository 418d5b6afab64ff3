// The product of vector code: dot products of R weight rows with M activation rows. (Tiles have another:
// tile_product.h.)
//
// Each result is one chain of fused multiply-adds over the columns in rising order, 16 lanes wide, summed by a fixed
// tree. R and M decide how many chains run side by side, never the order within one. So a row's results do not depend
// on how many other rows there are, nor on how the work was cut.
//
// Activations are fp32 here, "split": of every 32 columns first the 16 even ones, then the 16 odd ones, padded with
// zeros to a multiple of 32. That is how 16-bit and 4-bit pairs fall apart when they are widened. (bf16.h has another
// arithmetic.)
#pragma once

#include <algorithm>

#include "simd.h"
#include "weights.h"

namespace ventoux {
namespace VENTOUX_ISA {

constexpr int kBlock = 32;  // columns per split block

inline int64_t padded(int64_t cols) { return (cols + kBlock - 1) / kBlock * kBlock; }
// Where column j lies in a split row.
inline int64_t split_index(int64_t j) { return j / kBlock * kBlock + (j % 2) * kLanes + j % kBlock / 2; }

// Readers: how one format becomes floats. `block(i)` is columns 32 i .. 32 i + 31; `tail` reads a last, shorter block.
template <class Value, Pair (*split)(const void*)>
struct DenseReader {
  const uint8_t* p;
  DenseReader() = default;
  DenseReader(const Weight& w, int64_t r) : p(w.row(r)) {}
  explicit DenseReader(const void* row) : p(static_cast<const uint8_t*>(row)) {}
  static constexpr int64_t kBytes = kBlock * sizeof(Value);
  Pair block(int64_t i) const { return split(p + i * kBytes); }
  void prefetch(int64_t i, int64_t ahead) const { __builtin_prefetch(p + ahead + i * kBytes, 0, 3); }
  Pair tail(int64_t i, int64_t count) const {
    alignas(64) Value rest[kBlock] = {};
    std::memcpy(rest, p + i * kBytes, size_t(count) * sizeof(Value));
    return split(rest);
  }
};
using Bf16Reader = DenseReader<uint16_t, split_bf16>;
using F32Reader = DenseReader<float, split_f32>;

struct Fp8Reader {
  const uint8_t* p;
  Fp8Reader() = default;
  Fp8Reader(const Weight& w, int64_t r) : p(w.row(r)) {}
#if defined(__AVX512F__)
  // Exponent and mantissa move into a float's place; the exponent is 120 too small. Codes below 8 are subnormal: m /
  // 512. 0x7f, NaN, would come out as 480: no checkpoint with it is loaded.
  static __m512 widen(__m512i code) {
    __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi32(0x7f));
    __m512i sign = _mm512_slli_epi32(_mm512_and_si512(code, _mm512_set1_epi32(0x80)), 24);
    __m512i normal = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 20), _mm512_set1_epi32(120 << 23));
    __m512 small = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), _mm512_set1_ps(1.0f / 512));
    __mmask16 is_small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(8));
    __m512i value = _mm512_mask_mov_epi32(normal, is_small, _mm512_castps_si512(small));
    return _mm512_castsi512_ps(_mm512_or_si512(value, sign));
  }
  static Pair decode(const uint8_t* q) {
    __m512i both = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
    return {{widen(both)}, {widen(_mm512_srli_epi32(both, 8))}};
  }
#else
  static Pair decode(const uint8_t* q) {
    alignas(64) float even[kLanes], odd[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      even[i] = kE4m3.value[q[2 * i]];
      odd[i] = kE4m3.value[q[2 * i + 1]];
    }
    return {load(even), load(odd)};
  }
#endif
  Pair block(int64_t i) const { return decode(p + i * kBlock); }
  void prefetch(int64_t i, int64_t ahead) const { __builtin_prefetch(p + ahead + i * kBlock, 0, 3); }
  Pair tail(int64_t i, int64_t count) const {
    alignas(64) uint8_t rest[kBlock] = {};
    std::memcpy(rest, p + i * kBlock, size_t(count));
    return decode(rest);
  }
};

// code x group scale has at most six significant bits: exact.
struct Nvfp4Reader {
  const uint8_t* p;
  const uint8_t* groups;
  Nvfp4Reader() = default;
  Nvfp4Reader(const Weight& w, int64_t r) : p(w.row(r)), groups(w.row_groups(r)) {}
#if defined(__AVX512F__)
  static Pair decode(const uint8_t* q, float scale0, float scale1) {
    const __m512 table = _mm512_set_ps(-6, -4, -3, -2, -1.5f, -1, -0.5f, -0.0f, 6, 4, 3, 2, 1.5f, 1, 0.5f, 0);
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
    __m512 scale = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(scale0), _mm512_set1_ps(scale1));
    return {{_mm512_mul_ps(_mm512_permutexvar_ps(bytes, table), scale)},
            {_mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table), scale)}};
  }
#else
  static Pair decode(const uint8_t* q, float scale0, float scale1) {
    static constexpr float table[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    alignas(64) float even[kLanes], odd[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      float scale = i < kLanes / 2 ? scale0 : scale1;
      even[i] = table[q[i] & 15] * scale;
      odd[i] = table[q[i] >> 4] * scale;
    }
    return {load(even), load(odd)};
  }
#endif
  Pair block(int64_t i) const {
    return decode(p + i * kBlock / 2, kE4m3.value[groups[2 * i]], kE4m3.value[groups[2 * i + 1]]);
  }
  void prefetch(int64_t i, int64_t ahead) const { __builtin_prefetch(p + ahead + i * kBlock / 2, 0, 3); }
  Pair tail(int64_t i, int64_t) const {  // columns are a multiple of 16: a tail is one group
    alignas(64) uint8_t rest[kBlock / 2] = {};
    std::memcpy(rest, p + i * kBlock / 2, kBlock / 4);
    return decode(rest, kE4m3.value[groups[2 * i]], 0.0f);
  }
};

// An arithmetic: what activations are kept as, what 32 columns of a weight become, and one step of a chain.
struct Fp32 {
  using Element = float;
  static constexpr bool kTakesF32 = true;  // weights stored as fp32
  template <class Reader>
  static Pair block(const Reader& w, int64_t i) {
    return w.block(i);
  }
  template <class Reader>
  static Pair tail(const Reader& w, int64_t i, int64_t count) {
    return w.tail(i, count);
  }
  static V step(const Pair& weight, const float* x, V sum) {
    return fma(weight.odd, load(x + kLanes), fma(weight.even, load(x), sum));
  }
};

// out[m * ld + r] = <weight row r, activation row m>. R is 4 or 8. What lies `ahead` bytes further is fetched
// meanwhile: the rows that come next, which the hardware's own prefetcher finds too late when each row is a stream of
// its own.
template <int R, int M, class A, class Reader>
__attribute__((noinline)) void dot_block(const Reader* w, const typename A::Element* const* x, int64_t cols,
                                         int64_t ahead, float* out, int64_t ld) {
  V acc[R][M];
  for (auto& row : acc)
    for (auto& lane : row) lane = zero();
  const int64_t whole = cols / kBlock;
  for (int64_t i = 0; i < whole; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      w[r].prefetch(i, ahead);
      const auto weight = A::block(w[r], i);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[r][m] = A::step(weight, x[m] + i * kBlock, acc[r][m]);
    }
  }
  if (const int64_t rest = cols % kBlock) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto weight = A::tail(w[r], whole, rest);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[r][m] = A::step(weight, x[m] + whole * kBlock, acc[r][m]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int r = 0; r < R; r += 4) sum4(acc[r][m], acc[r + 1][m], acc[r + 2][m], acc[r + 3][m], out + m * ld + r);
}

// How many rows run side by side: as many chains as there are registers to hold them.
#if defined(__AVX512F__)
constexpr int kMaxM = 6;
constexpr int kWide = 8, kNarrow = 4, kWideUpTo = 2;
#else
constexpr int kMaxM = 2;
constexpr int kWide = 4, kNarrow = 4, kWideUpTo = 1;
#endif

template <int R, class A, class Reader>
inline void dot_rows(int num_x, const Reader* w, const typename A::Element* const* x, int64_t cols, int64_t ahead,
                     float* out, int64_t ld) {
  switch (num_x) {
    case 1: dot_block<R, 1, A>(w, x, cols, ahead, out, ld); break;
    case 2: dot_block<R, 2, A>(w, x, cols, ahead, out, ld); break;
#if defined(__AVX512F__)
    case 3: dot_block<R, 3, A>(w, x, cols, ahead, out, ld); break;
    case 4: dot_block<R, 4, A>(w, x, cols, ahead, out, ld); break;
    case 5: dot_block<R, 5, A>(w, x, cols, ahead, out, ld); break;
    case 6: dot_block<R, 6, A>(w, x, cols, ahead, out, ld); break;
#endif
  }
}

// The same for any number of weight rows: out[m * ld + i] for rows first .. first + count - 1, at most kMaxM
// activations. `row_bytes` is the distance of rows that follow each other in memory, 0 if they do not.
template <class Reader, class A = Fp32, class MakeReader>
inline void dots(const MakeReader& reader, int64_t first, int64_t count, int num_x, const typename A::Element* const* x,
                 int64_t cols, int64_t row_bytes, float* out, int64_t ld) {
  const int step = num_x <= kWideUpTo ? kWide : kNarrow;
  Reader w[kWide];
  float edge[kMaxM * kWide];
  for (int64_t r = 0; r < count; r += step) {
    const int64_t here = std::min<int64_t>(step, count - r);
    for (int i = 0; i < step; ++i) w[i] = reader(first + r + std::min<int64_t>(i, here - 1));
    float* to = here == step ? out + r : edge;
    const int64_t to_ld = here == step ? ld : step;
    if (step == kWide) {
      dot_rows<kWide, A>(num_x, w, x, cols, step * row_bytes, to, to_ld);
    } else {
      dot_rows<kNarrow, A>(num_x, w, x, cols, step * row_bytes, to, to_ld);
    }
    if (here != step)
      for (int m = 0; m < num_x; ++m)
        for (int64_t i = 0; i < here; ++i) out[m * ld + r + i] = edge[m * step + i];
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
