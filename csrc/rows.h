// Activations in and out: from stored rows to split fp32 and back.
#pragma once

#include <vector>

#include "dot.h"
#include "pool.h"

namespace ventoux {
namespace VENTOUX_ISA {

// Scratch of the pool, by use. An operator's calls of others are over before it asks for its own.
enum Slot { kSplitX, kHidden, kPairs, kQueries, kPartials, kLocal, kBlocks };

// One row -> split fp32, zeros after the last column.
inline void split_row(const void* row, bool bf16, int64_t cols, float* out) {
  const int64_t whole = cols / kBlock, rest = cols % kBlock;
  const Bf16Reader narrow(row);
  const F32Reader wide(row);
  for (int64_t i = 0; i < whole + (rest != 0); ++i) {
    Pair p = i < whole ? (bf16 ? narrow.block(i) : wide.block(i)) : (bf16 ? narrow.tail(i, rest) : wide.tail(i, rest));
    store(out + i * kBlock, p.even);
    store(out + i * kBlock + kLanes, p.odd);
  }
}

// each(r) for rows 0 .. count - 1: enough of them per task to pay for taking it.
template <class Each>
inline void run_rows(Pool& pool, int64_t count, const Each& each) {
  constexpr int64_t kRowsPerTask = 16;
  pool.run(int((count + kRowsPerTask - 1) / kRowsPerTask), [&](int task) {
    const int64_t end = std::min(count, (task + 1) * kRowsPerTask);
    for (int64_t r = task * kRowsPerTask; r < end; ++r) each(r);
  });
}

inline float* split_rows(Pool& pool, Rows x) {
  const int64_t width = padded(x.cols);
  float* out = static_cast<float*>(pool.scratch(kSplitX, size_t(x.count * width) * 4));
  run_rows(pool, x.count, [&](int64_t r) { split_row(x.row(r), x.bf16, x.cols, out + r * width); });
  return out;
}

inline void put(const Rows& out, int64_t row, int64_t col, float value) {
  char* p = out.row(row);
  if (out.bf16) {
    reinterpret_cast<uint16_t*>(p)[col] = float_to_bf16(value);
  } else {
    reinterpret_cast<float*>(p)[col] = value;
  }
}

// `values` has room for a whole number of lanes.
inline void narrow(const float* values, int64_t count, uint16_t* to) {
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) store_bf16(to + i, load(values + i));
  for (int64_t i = whole; i < count; ++i) to[i] = float_to_bf16(values[i]);
}

// Columns first .. first + count - 1 of a row.
inline void put_columns(const Rows& out, int64_t row, int64_t first, int64_t count, const float* values) {
  if (out.bf16) {
    narrow(values, count, reinterpret_cast<uint16_t*>(out.row(row)) + first);
  } else {
    std::memcpy(out.row(row) + first * 4, values, size_t(count) * 4);
  }
}

// A split row of `cols` columns -> the first columns of row `row`.
inline void join_row(const float* split, int64_t cols, const Rows& out, int64_t row) {
  const int64_t size = out.bf16 ? 2 : 4, whole = cols / kBlock;
  for (int64_t i = 0; i < whole + (cols % kBlock != 0); ++i) {
    const Pair p{load(split + i * kBlock), load(split + i * kBlock + kLanes)};
    char rest[kBlock * 4];
    char* to = i < whole ? out.row(row) + i * kBlock * size : rest;
    if (out.bf16) {
      join_bf16(to, p);
    } else {
      join_f32(to, p);
    }
    if (i == whole) std::memcpy(out.row(row) + i * kBlock * size, rest, size_t((cols % kBlock) * size));
  }
}

inline float get(const Rows& x, int64_t row, int64_t col) {
  const char* p = x.row(row);
  return x.bf16 ? bf16_to_float(reinterpret_cast<const uint16_t*>(p)[col]) : reinterpret_cast<const float*>(p)[col];
}

// x += y, rounded once: the residual stream.
inline void add(Pool& pool, Rows x, Rows y) {
  run_rows(pool, x.count, [&](int64_t r) {
    static thread_local std::vector<float> a, b;
    a.resize(size_t(padded(x.cols)));
    b.resize(a.size());
    split_row(x.row(r), x.bf16, x.cols, a.data());
    split_row(y.row(r), y.bf16, x.cols, b.data());
    for (size_t i = 0; i < a.size(); i += kLanes) store(&a[i], load(&a[i]) + load(&b[i]));
    join_row(a.data(), x.cols, x, r);
  });
}

}  // namespace VENTOUX_ISA
}  // namespace ventoux
