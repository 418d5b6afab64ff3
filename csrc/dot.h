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
#include <utility>

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
  static constexpr bool kKeepsUp = true;  // a chain keeps up with memory: a step or two for each line of 64 bytes
  Pair block(int64_t i) const { return split(p + i * kBytes); }
  const uint8_t* line(int64_t i) const { return p + i * kBytes; }
  Pair tail(int64_t i, int64_t count) const {
    alignas(64) Value rest[kBlock] = {};
    std::memcpy(rest, p + i * kBytes, size_t(count) * sizeof(Value));
    return split(rest);
  }
};
using Bf16Reader = DenseReader<uint16_t, split_bf16>;
using F32Reader = DenseReader<float, split_f32>;

#if defined(__AVX2__)
// e4m3 codes in the upper bytes of words -> halves that are 2^-8 of them: exponent and mantissa are as long or longer
// there, and subnormal numbers mean the same, so moving them by one bit is all. 0x7f, NaN, comes out as 480: no
// checkpoint with it is loaded.
inline __m256i halves(__m256i words) {
  return _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16(short(0xbf80)));
}
#endif

// Columns come out as 2^-8 of what they are: see Fp32::unit.
struct Fp8Reader {
  const uint8_t* p;
  Fp8Reader() = default;
  Fp8Reader(const Weight& w, int64_t r) : p(w.row(r)) {}
  static Pair decode(const uint8_t* q) {
#if defined(__AVX2__)
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
    return {from_halves(halves(_mm256_slli_epi16(both, 8))), from_halves(halves(both))};
#else
    return {lanes([&](int i) { return kE4m3.value[q[2 * i]] / 256; }),
            lanes([&](int i) { return kE4m3.value[q[2 * i + 1]] / 256; })};
#endif
  }
  static constexpr bool kKeepsUp = false;  // four steps
  Pair block(int64_t i) const { return decode(p + i * kBlock); }
  const uint8_t* line(int64_t i) const { return p + i * kBlock; }
  Pair tail(int64_t i, int64_t count) const {
    alignas(64) uint8_t rest[kBlock] = {};
    std::memcpy(rest, p + i * kBlock, size_t(count));
    return decode(rest);
  }
};

// An arithmetic: what activations are kept as, what 32 columns of a weight become, in how many parts, and a part's step
// of a chain.
struct Fp32 {
  using Element = float;
  static constexpr bool kTakesF32 = true;    // weights stored as fp32
  static constexpr bool kWidensFp8 = false;  // a panel at once, for many activations
  // What a result is to be multiplied with, where the reader gives a fraction.
  static float unit(Format format) { return format == Format::kFp8 ? 256.0f : 1.0f; }
  static constexpr int kParts = 2;  // the even columns, then the odd ones
  template <int P, class Reader>
  static V part(const Reader& w, int64_t i) {
    const Pair both = w.block(i);
    return P ? both.odd : both.even;
  }
  template <int P, class Reader>
  static V tail(const Reader& w, int64_t i, int64_t count) {
    const Pair both = w.tail(i, count);
    return P ? both.odd : both.even;
  }
  template <int P>
  static V step(V weight, const float* x, V sum) {
    return fma(weight, load(x + P * kLanes), sum);
  }
};

// What is fetched while rows are multiplied: so many blocks in each step of the columns, from `ahead` bytes behind the
// first row.
struct Fetch {
  int64_t ahead;
  int blocks;
};
// Weights fetched no further ahead find room in the first-level cache, beside activations; others go to the second.
constexpr int64_t kNear = 8192;

// f.operator()<n>() of n, which is one of 1 .. kMost.
template <int kMost, class F>
inline void with_number(int n, const F& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    ((n == I + 1 ? f.template operator()<I + 1>() : void()), ...);
  }(std::make_integer_sequence<int, kMost>{});
}

// out[m * ld + r] = <weight row r, activation row m>. R is 4 or 8. F blocks are fetched in each step into the cache of
// that level, in the order of their addresses: what comes next. The hardware's own prefetcher finds it too late when
// each row is a stream of its own; from lines that are fetched in order it goes on: up to 1.7 times as fast
// (docs/decisions/015-fetching-in-order.md).
//
// F = 0: one row after the other, for one or two activations and weights from memory. That is the order of addresses
// itself, and the hardware fetches ahead by itself as fast as anything can read. One chain at a time keeps up;
// on rows that lie in a cache it would be slower than several.
//
// One part of R weights stays in registers while the activations pass by. With 24 chains there is no room for two: left
// to itself, gcc reads a weight once, keeps both parts and all activations, and moves chains to memory and back. So it
// must not see that the second part comes from the same bytes. Attention over a long context gained 3 %, rows of 512
// columns that lie in the cache 9 %.
template <int R, int M, int F, int kLevel, class A, class Reader>
__attribute__((noinline)) void dot_block(const Reader* w, const typename A::Element* const* x, int64_t cols,
                                         int64_t ahead, float* out, int64_t ld) {
  V acc[R][M];
  for (auto& row : acc)
    for (auto& lane : row) lane = zero();
  auto add = [&]<int P>(int64_t i, const auto& part) __attribute__((always_inline)) {
    decltype(part(w[0])) weight[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) weight[r] = part(w[r]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][m] = A::template step<P>(weight[r], x[m] + i * kBlock, acc[r][m]);
  };
  const int64_t whole = cols / kBlock, rest = cols % kBlock;
  if constexpr (F == 0) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      for (int64_t i = 0; i < whole; ++i)
#pragma GCC unroll 2
        for (int m = 0; m < M; ++m) {
          const typename A::Element* columns = x[m] + i * kBlock;
          acc[r][m] = A::template step<0>(A::template part<0>(w[r], i), columns, acc[r][m]);
          if constexpr (A::kParts == 2)
            acc[r][m] = A::template step<1>(A::template part<1>(w[r], i), columns, acc[r][m]);
        }
  } else {
    for (int64_t i = 0; i < whole; ++i) {
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) __builtin_prefetch(w[0].line(i * F + f) + ahead, 0, 4 - kLevel);
      add.template operator()<0>(i, [&](const Reader& row) { return A::template part<0>(row, i); });
      if constexpr (A::kParts == 2) {
        int64_t again = i;
        if constexpr (R * M > 16) asm("" : "+r"(again));
        add.template operator()<1>(again, [&](const Reader& row) { return A::template part<1>(row, again); });
      }
    }
  }
  if (rest) {
    add.template operator()<0>(whole, [&](const Reader& row) { return A::template tail<0>(row, whole, rest); });
    if constexpr (A::kParts == 2)
      add.template operator()<1>(whole, [&](const Reader& row) { return A::template tail<1>(row, whole, rest); });
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int r = 0; r < R; r += 4) sum4(acc[r][m], acc[r + 1][m], acc[r + 2][m], acc[r + 3][m], out + m * ld + r);
}

// How many rows a call has; side by side, as many chains as there are registers to hold them.
#if defined(__AVX512F__)
constexpr int kMaxM = 6;
constexpr int kWide = 8, kNarrow = 4, kWideUpTo = 2;
#else
constexpr int kMaxM = 2;
constexpr int kWide = 4, kNarrow = 4, kWideUpTo = 1;
#endif
constexpr int rows_at_once(int num_x) { return num_x <= kWideUpTo ? kWide : kNarrow; }

// Of rows_at_once(num_x) weight rows.
template <class A, bool kFromMemory, class Reader>
inline void dot_rows(int num_x, const Reader* w, const typename A::Element* const* x, int64_t cols, Fetch fetch,
                     float* out, int64_t ld) {
  with_number<kMaxM>(num_x, [&]<int M>() {
    constexpr int R = rows_at_once(M);
    auto go = [&]<int F, int kLevel>() { dot_block<R, M, F, kLevel, A>(w, x, cols, fetch.ahead, out, ld); };
    if constexpr (!kFromMemory) {
      go.template operator()<R, 1>();
    } else if constexpr (Reader::kKeepsUp && M <= 2) {
      go.template operator()<0, 1>();
    } else if (fetch.blocks < R) {
      fetch.blocks == 1 ? go.template operator()<1, 2>() : go.template operator()<2, 2>();
    } else {
      fetch.ahead > kNear ? go.template operator()<R, 2>() : go.template operator()<R, 1>();
    }
  });
}

// The same for any number of weight rows: out[m * ld + i] for rows first .. first + count - 1, at most kMaxM
// activations.
template <class Reader, class A = Fp32, bool kFromMemory = false, class MakeReader>
inline void dots(const MakeReader& reader, int64_t first, int64_t count, int num_x, const typename A::Element* const* x,
                 int64_t cols, Fetch fetch, float* out, int64_t ld) {
  const int step = rows_at_once(num_x);
  Reader w[kWide];
  float edge[kMaxM * kWide];
  for (int64_t r = 0; r < count; r += step) {
    const int64_t here = std::min<int64_t>(step, count - r);
    for (int i = 0; i < step; ++i) w[i] = reader(first + r + std::min<int64_t>(i, here - 1));
    float* to = here == step ? out + r : edge;
    const int64_t to_ld = here == step ? ld : step;
    dot_rows<A, kFromMemory>(num_x, w, x, cols, fetch, to, to_ld);
    if (here != step)
      for (int m = 0; m < num_x; ++m)
        for (int64_t i = 0; i < here; ++i) out[m * ld + r + i] = edge[m * step + i];
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
