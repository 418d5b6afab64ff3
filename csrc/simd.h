// Sixteen float lanes, whatever the instruction set: AVX-512, AVX2 with FMA, or plain C++ that any compiler can lower.
//
// One kernel source (kernels.cpp) is compiled once for each of them; this file is all that differs. Lane i of every
// operation is the same in all three, so a sum is taken in the same order everywhere. (The plain path rounds twice
// where FMA rounds once.)
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ventoux {

constexpr int kLanes = 16;

inline float bf16_to_float(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16) | 0x40;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

namespace VENTOUX_ISA {

#if defined(__AVX512F__)

struct V {
  __m512 v;
};
struct Pair {
  V even, odd;
};

inline V zero() { return {_mm512_setzero_ps()}; }
inline V splat(float x) { return {_mm512_set1_ps(x)}; }
inline V load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
inline V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V round(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for integral n in -127..127; -127 gives zero.
inline V exp2_int(V n) {
  __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_castsi512_ps(bits)};
}

// 16 halves
inline V from_halves(__m256i h) { return {_mm512_cvtph_ps(h)}; }

// Sums of four vectors: ((l0 + l2) + (l1 + l3)) in each quarter of four lanes, then (q0 + q2) + (q1 + q3).
inline __m512 sum_quarters(V a, V b, V c, V d) {
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}
inline void sum4(V a, V b, V c, V d, float* out) {
  __m512 abcd = sum_quarters(a, b, c, d);
  __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
// out[4 i + j] = what sum4 makes of v[4 i + j]: the last two steps for all sixteen at once.
inline void sum16(const V (&v)[4][4], float* out) {
  auto quarters = [&](int i) { return sum_quarters(v[i][0], v[i][1], v[i][2], v[i][3]); };
  auto halves = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  const __m512 first = halves(quarters(0), quarters(1)), second = halves(quarters(2), quarters(3));
  const __m512 even = _mm512_shuffle_f32x4(first, second, 0x88), odd = _mm512_shuffle_f32x4(first, second, 0xdd);
  _mm512_storeu_ps(out, _mm512_add_ps(even, odd));
}

// 32 stored values as two vectors: the even columns and the odd ones.
inline Pair split_bf16(const void* p) {
  __m512i raw = _mm512_loadu_si512(p);
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))},
          {_mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(int(0xffff0000))))}};
}
inline Pair split_f32(const void* p) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(static_cast<const float*>(p) + 16);
  return {{_mm512_permutex2var_ps(a, even, b)},
          {_mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b)}};
}

// The upper half of each lane, rounded to nearest even; a NaN keeps its sign and becomes quiet.
inline __m512i bf16_bits(V a) {
  __m512i bits = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
inline void store_bf16(void* p, V a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_bits(a), 16)));
}
// The inverse of split: even and odd columns back in their places.
inline __m512i joined_bf16(Pair a) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(bf16_bits(a.even), 16), bf16_bits(a.odd));
}
inline void join_bf16(void* p, Pair a) { _mm512_storeu_si512(p, joined_bf16(a)); }
inline void join_f32(void* p, Pair a) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  float* to = static_cast<float*>(p);
  _mm512_storeu_ps(to, _mm512_permutex2var_ps(a.even.v, low, a.odd.v));
  _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(a.even.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), a.odd.v));
}

#elif defined(__AVX2__) && defined(__FMA__)

struct V {
  __m256 a, b;
};
struct Pair {
  V even, odd;
};

inline V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
inline V operator+(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V operator-(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V operator*(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V operator/(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V round(V x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline __m256 exp2_half(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline V exp2_int(V n) { return {exp2_half(n.a), exp2_half(n.b)}; }

inline V from_halves(__m256i h) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}

inline void sum4(V a, V b, V c, V d, float* out) {
  auto quarters = [](__m256 p, __m256 q, __m256 r, __m256 s) {
    __m256 pq = _mm256_add_ps(_mm256_unpacklo_ps(p, q), _mm256_unpackhi_ps(p, q));
    __m256 rs = _mm256_add_ps(_mm256_unpacklo_ps(r, s), _mm256_unpackhi_ps(r, s));
    return _mm256_add_ps(_mm256_shuffle_ps(pq, rs, 0x44), _mm256_shuffle_ps(pq, rs, 0xee));
  };
  __m256 halves = _mm256_add_ps(quarters(a.a, b.a, c.a, d.a), quarters(a.b, b.b, c.b, d.b));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

inline Pair split_bf16(const void* p) {
  const __m256i high = _mm256_set1_epi32(int(0xffff0000));
  const __m256i* from = static_cast<const __m256i*>(p);
  __m256i r = _mm256_loadu_si256(from), s = _mm256_loadu_si256(from + 1);
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(r, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(s, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(r, high)), _mm256_castsi256_ps(_mm256_and_si256(s, high))}};
}
inline Pair split_f32(const void* p) {
  const float* f = static_cast<const float*>(p);
  auto half = [](const float* q, int pick_odd) {
    __m256 x = _mm256_loadu_ps(q), y = _mm256_loadu_ps(q + 8);
    __m256 mixed = pick_odd ? _mm256_shuffle_ps(x, y, 0xdd) : _mm256_shuffle_ps(x, y, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
  };
  return {{half(f, 0), half(f + 16, 0)}, {half(f, 1), half(f + 16, 1)}};
}

#else

struct V {
  float v[kLanes];
};
struct Pair {
  V even, odd;
};

template <class Op>
inline V lanes(Op op) {
  V r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = op(i);
  return r;
}
inline V zero() {
  return lanes([](int) { return 0.0f; });
}
inline V splat(float x) {
  return lanes([=](int) { return x; });
}
inline V load(const float* p) {
  V r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void store(float* p, const V& a) { std::memcpy(p, a.v, sizeof a.v); }
inline V operator+(const V& a, const V& b) {
  return lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline V operator-(const V& a, const V& b) {
  return lanes([&](int i) { return a.v[i] - b.v[i]; });
}
inline V operator*(const V& a, const V& b) {
  return lanes([&](int i) { return a.v[i] * b.v[i]; });
}
inline V operator/(const V& a, const V& b) {
  return lanes([&](int i) { return a.v[i] / b.v[i]; });
}
inline V fma(const V& a, const V& b, const V& c) {
  return lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline V max(const V& a, const V& b) {
  return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline V min(const V& a, const V& b) {
  return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline V round(const V& a) {
  return lanes([&](int i) { return std::nearbyint(a.v[i]); });
}
inline V exp2_int(const V& n) {
  return lanes([&](int i) {
    uint32_t bits = uint32_t(int32_t(n.v[i]) + 127) << 23;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  });
}

inline void sum4(const V& a, const V& b, const V& c, const V& d, float* out) {
  const V* all[4] = {&a, &b, &c, &d};
  for (int k = 0; k < 4; ++k) {
    const float* v = all[k]->v;
    float quarter[4];
    for (int q = 0; q < 4; ++q) quarter[q] = (v[4 * q] + v[4 * q + 2]) + (v[4 * q + 1] + v[4 * q + 3]);
    out[k] = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
  }
}

inline Pair split_bf16(const void* p) {
  uint16_t raw[2 * kLanes];
  std::memcpy(raw, p, sizeof raw);
  return {lanes([&](int i) { return bf16_to_float(raw[2 * i]); }),
          lanes([&](int i) { return bf16_to_float(raw[2 * i + 1]); })};
}
inline Pair split_f32(const void* p) {
  float raw[2 * kLanes];
  std::memcpy(raw, p, sizeof raw);
  return {lanes([&](int i) { return raw[2 * i]; }), lanes([&](int i) { return raw[2 * i + 1]; })};
}

#endif

#if !defined(__AVX512F__)
inline void sum16(const V (&v)[4][4], float* out) {
  for (int i = 0; i < 4; ++i) sum4(v[i][0], v[i][1], v[i][2], v[i][3], out + 4 * i);
}
inline void store_bf16(void* p, const V& a) {
  float values[kLanes];
  uint16_t bits[kLanes];
  store(values, a);
  for (int i = 0; i < kLanes; ++i) bits[i] = float_to_bf16(values[i]);
  std::memcpy(p, bits, sizeof bits);
}
// The inverse of split: even and odd columns back in their places.
inline void join_f32(void* p, const Pair& a) {
  float even[kLanes], odd[kLanes], both[2 * kLanes];
  store(even, a.even);
  store(odd, a.odd);
  for (int i = 0; i < kLanes; ++i) {
    both[2 * i] = even[i];
    both[2 * i + 1] = odd[i];
  }
  std::memcpy(p, both, sizeof both);
}
inline void join_bf16(void* p, const Pair& a) {
  float both[2 * kLanes];
  join_f32(both, a);
  store_bf16(p, load(both));
  store_bf16(static_cast<char*>(p) + 2 * kLanes, load(both + kLanes));
}
#endif

// e^x for x <= 0 (softmax) and for moderate positive x; below -87 it is zero. Polynomial of degree 6 on [-ln2/2, ln2/2]
// after Cody and Waite's range reduction; largest relative error 2 ulp.
inline V exp(V x) {
  x = max(splat(-88.0f), min(splat(88.0f), x));  // in this order a NaN comes through
  V n = round(x * splat(1.44269504f));
  V r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  V p = splat(1.0f / 720);
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return p * exp2_int(n);
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
