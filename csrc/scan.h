// What sampling asks of every row of logits, and the runner of every row of hidden states: whether all values are
// finite, and which is the first of the largest.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "rows.h"

namespace ventoux {
namespace VENTOUX_ISA {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline uint32_t bits_of(uint16_t bf16) { return uint32_t(bf16) << 16; }

// Bits of positive numbers rise with them, those of negative ones fall: turned round, and back again.
inline int32_t turned(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

struct Extremes {
  int32_t largest = std::numeric_limits<int32_t>::min();
  uint32_t magnitude = 0;

  // As integers, which any compiler takes sixteen at a time: floats it may not, for the sake of NaN.
  void add(uint32_t bits) {
    largest = std::max(largest, turned(int32_t(bits)));
    magnitude = std::max(magnitude, bits & 0x7fffffff);
  }
  void add(const Extremes& other) {
    largest = std::max(largest, other.largest);
    magnitude = std::max(magnitude, other.magnitude);
  }
  bool finite() const { return magnitude < 0x7f800000; }
  float value() const {
    const int32_t bits = turned(largest);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
};

// `count` if it is not there.
template <class T>
inline int64_t first_place(const T* values, int64_t count, float value) {
  constexpr int64_t kAtOnce = 64;
  auto is_it = [&](int64_t i) {
    if constexpr (sizeof(T) == 2) return bf16_to_float(values[i]) == value;
    else return values[i] == value;
  };
  int64_t i = 0;
  for (; i + kAtOnce <= count; i += kAtOnce) {
    bool any = false;
    for (int64_t j = i; j < i + kAtOnce; ++j) any |= is_it(j);
    if (any) break;
  }
  while (i < count && !is_it(i)) ++i;
  return i;
}

template <class T>
inline void scan_as(Pool& pool, Rows x, Scanned* scanned) {
  constexpr int64_t kPiece = 16384;  // values of one task: 64 KB of logits
  const int64_t width = std::min(x.cols, kPiece), pieces = (x.cols + width - 1) / width, together = kPiece / width;
  const int64_t count = x.count * pieces;
  auto* found = static_cast<Extremes*>(pool.scratch(kLocal, size_t(count) * sizeof(Extremes)));
  pool.run(int((count + together - 1) / together), [&](int task) {
    for (int64_t i = task * together; i < std::min(count, (task + 1) * together); ++i) {
      const int64_t first = i % pieces * width, last = std::min(x.cols, first + width);
      const T* row = reinterpret_cast<const T*>(x.row(i / pieces));
      Extremes extremes;
      for (int64_t c = first; c < last; ++c) extremes.add(bits_of(row[c]));
      found[i] = extremes;
    }
  });
  run_rows(pool, x.count, [&](int64_t r) {
    const Extremes* piece = found + r * pieces;
    Extremes all;
    for (int64_t i = 0; i < pieces; ++i) all.add(piece[i]);
    // Zeros of both signs are equal, but not their bits: all pieces whose largest value is as large may hold it.
    int64_t i = 0;
    while (i < pieces - 1 && !(piece[i].value() >= all.value())) ++i;
    const T* row = reinterpret_cast<const T*>(x.row(r));
    const int64_t first = i * width, place = first_place(row + first, std::min(width, x.cols - first), all.value());
    scanned[r] = {all.finite(), all.finite() ? first + place : 0};
  });
}

inline void scan(Pool& pool, Rows x, Scanned* scanned) {
  if (x.bf16) {
    scan_as<uint16_t>(pool, x, scanned);
  } else {
    scan_as<float>(pool, x, scanned);
  }
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
