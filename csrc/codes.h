// The product of vector code with NVFP4 weights, walking over rows of codes: 128 columns at a time, which are 64 bytes
// and eight groups. What those become and how they are multiplied is an arithmetic's: fixed.h and bf16.h.
//
//   Block                        128 columns of an activation
//   deal(row, cols, Block* to)   a row of activations into blocks, zeros after the last column
//   Codes(bytes, groups)         128 columns of a weight, widened
//   step(codes, block, sum)      sum + the products of both, 16 lanes
//
// Order of a result: lane i has columns 8 i .. 8 i + 7 of each block, half a group; one chain of fused multiply-adds
// per lane over the blocks in rising order; the tree of sum16.
#pragma once

#include "dot.h"

namespace ventoux {
namespace VENTOUX_ISA {

constexpr int kCodeBlock = 128;  // columns: 64 bytes of codes, 8 groups
constexpr int kGroup = 16;       // columns that share a scale
constexpr int kNibbles = 4;      // of a word of codes: word i of a block holds columns 4 i .. 4 i + 3

inline int64_t code_blocks(int64_t cols) { return (cols + kCodeBlock - 1) / kCodeBlock; }

#if defined(__AVX2__)
// 2^-8 of 8 scales, each of which has two lanes.
inline V lane_scales(const uint8_t* groups) {
  const __m256i place = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3,  //
                                         -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
  int64_t all;
  std::memcpy(&all, groups, 8);
  return from_halves(halves(_mm256_shuffle_epi8(_mm256_set1_epi64x(all), place)));
}
#endif

// One row of codes with its group scales; the last block is shorter where the width is no multiple of 128.
struct CodeRow {
  const uint8_t* codes;
  const uint8_t* groups;
  CodeRow() = default;
  CodeRow(const uint8_t* codes, const uint8_t* groups) : codes(codes), groups(groups) {}
  CodeRow(const Weight& w, int64_t r) : CodeRow(w.row(r), w.row_groups(r)) {}
  template <class Codes>
  Codes block(int64_t b) const {
    return {codes + b * kCodeBlock / 2, groups + b * (kCodeBlock / kGroup)};
  }
  CodeRow ahead(int64_t rows, int64_t cols) const {
    return {codes + rows * (cols / 2), groups + rows * (cols / kGroup)};
  }
  template <class Codes>
  Codes tail(int64_t b, int64_t count) const {
    uint8_t rest[kCodeBlock / 2] = {}, scales[kCodeBlock / kGroup] = {};
    std::memcpy(rest, codes + b * kCodeBlock / 2, size_t(count / 2));
    std::memcpy(scales, groups + b * (kCodeBlock / kGroup), size_t(count / kGroup));
    return {rest, scales};
  }
};

constexpr int kMaxCodeX = 8;  // activations side by side
constexpr int kCodeRows = 4;  // weight rows of a call
// How far ahead weights are fetched, in rows: some hundred nanoseconds with one activation.
constexpr int kCodesAhead = 8;

// out[m * ld + r] = <row r, activation m>, of R rows
template <int R, int M, int kLevel, class C>
inline __attribute__((always_inline)) void code_rows(const CodeRow* w, const typename C::Block* const* x, int64_t cols,
                                                     float* out, int64_t ld) {
  static_assert(R * M <= 16);
  using Codes = typename C::Codes;
  V acc[R][M];
  for (auto& row : acc)
    for (V& lane : row) lane = zero();
  auto add = [&](const Codes* codes, int64_t b) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][m] = C::step(codes[r], x[m][b], acc[r][m]);
  };
  // What comes next is fetched in the order of its addresses, which the hardware's own prefetcher then recognizes.
  const CodeRow ahead = w->ahead(kCodesAhead, cols);
  Codes codes[R];
  const int64_t whole = cols / kCodeBlock;
  for (int64_t b = 0; b < whole; ++b) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(ahead.codes + (b * R + r) * (kCodeBlock / 2), 0, 4 - kLevel);
      codes[r] = w[r].block<Codes>(b);
    }
    __builtin_prefetch(ahead.groups + b * R * (kCodeBlock / kGroup), 0, 4 - kLevel);
    add(codes, b);
  }
  if (const int64_t rest = cols % kCodeBlock) {
    for (int r = 0; r < R; ++r) codes[r] = w[r].tail<Codes>(whole, rest);
    add(codes, whole);
  }
  // Fewer than sixteen are filled up with zeros: 2 to 4 % slower in the cache than trees of four, the same from memory.
  V lanes[4][4];
  for (int i = 0; i < 16; ++i) lanes[i / 4][i % 4] = i < R * M ? acc[i % R][i / R] : zero();
  float sums[16];
  sum16(lanes, sums);
  for (int m = 0; m < M; ++m) std::memcpy(out + m * ld, sums + m * R, R * sizeof(float));
}

// The same of kCodeRows rows.
template <int M, int kLevel, class C>
__attribute__((noinline)) void code_block(const CodeRow* w, const typename C::Block* const* x, int64_t cols, float* out,
                                          int64_t ld) {
  // As many chains as there are registers to hold them.
  constexpr int R = M == 1 ? 4 : 2;
  for (int r = 0; r < kCodeRows; r += R) code_rows<R, M, kLevel, C>(w + r, x, cols, out + r, ld);
}

// out[m * ld + i] for rows first .. first + count - 1, row multipliers not applied.
template <class C>
inline void code_dots(const Weight& weight, int64_t first, int64_t count, int num_x, const typename C::Block* const* x,
                      float* out, int64_t ld) {
  CodeRow w[kCodeRows];
  float edge[kMaxCodeX * kCodeRows];
  const bool far = kCodesAhead * weight.row_bytes() > kNear;
  for (int64_t r = 0; r < count; r += kCodeRows) {
    const int here = int(std::min<int64_t>(kCodeRows, count - r));
    for (int i = 0; i < kCodeRows; ++i) w[i] = CodeRow(weight, first + r + std::min(i, here - 1));
    float* to = here == kCodeRows ? out + r : edge;
    const int64_t to_ld = here == kCodeRows ? ld : kCodeRows;
    with_number<kMaxCodeX>(num_x, [&]<int M>() {
      far ? code_block<M, 2, C>(w, x, weight.cols, to, to_ld) : code_block<M, 1, C>(w, x, weight.cols, to, to_ld);
    });
    if (here != kCodeRows)
      for (int m = 0; m < num_x; ++m)
        for (int i = 0; i < here; ++i) out[m * ld + r + i] = edge[m * kCodeRows + i];
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
