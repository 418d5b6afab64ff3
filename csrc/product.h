// What linear layers and experts ask of a product, whatever multiplies: activations gathered into an Operand, and dot
// products of a panel of weight rows with a group of them. This is the product of vector code, in either arithmetic.
#pragma once

#include <vector>

#include "codes.h"
#include "rows.h"

namespace ventoux {
namespace VENTOUX_ISA {

constexpr int64_t kPanel = 64;

// One row as products read it, zeros after the last column.
inline void read_row(const Rows& x, int64_t r, float* out) { split_row(x.row(r), x.bf16, x.cols, out); }
inline void read_row(const Rows& x, int64_t r, uint16_t* out) {  // of bf16 rows alone
  std::memcpy(out, x.row(r), size_t(x.cols) * 2);
  std::memset(out + x.cols, 0, size_t(padded(x.cols) - x.cols) * 2);
}
inline void write_columns(float* row, int64_t first, int64_t count, const float* values) {
  for (int64_t i = 0; i < count; ++i) row[split_index(first + i)] = values[i];
}
inline void write_columns(uint16_t* row, int64_t first, int64_t count, const float* values) {
  narrow(values, count, row + first);
}
inline void pad_row(float* row, int64_t cols) {
  for (int64_t j = cols; j < padded(cols); ++j) row[split_index(j)] = 0.0f;
}
inline void pad_row(uint16_t* row, int64_t cols) { std::memset(row + cols, 0, size_t(padded(cols) - cols) * 2); }

// FP8 and NVFP4 carry a multiplier per row of the weight. `unit` is a power of two.
inline void scale_rows(const Weight& w, int64_t first, int64_t count, int num_x, float* out, int64_t ld, float unit) {
  if (w.row_scales)
    for (int m = 0; m < num_x; ++m)
      for (int64_t i = 0; i < count; ++i) out[m * ld + i] *= unit * w.row_scales[first + i];
}

// Rows begin .. end - 1 in groups of nearly equal size, at most `most` each: group(first, count).
template <class Group>
inline void for_each_group(int64_t begin, int64_t end, int64_t most, const Group& group) {
  const int64_t groups = (end - begin + most - 1) / most;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = begin + (end - begin) * g / groups, next = begin + (end - begin) * (g + 1) / groups;
    group(first, int(next - first));
  }
}

// A call's activations among all that pass over the same rows of a weight: so many went before.
struct Passing {
  int64_t before, all;
};

// Dots of rows first .. first + count - 1 of w with activations, row multipliers applied; of every format but NVFP4.
//
// Rows that one group of activations meets fetch the next few. Rows that several groups meet, each reading them once
// more, come from memory for the first one only: each group fetches its share of the panel behind, one or two
// rows of each step, or memory would rest while the others multiply.
template <class A = Fp32>
inline void weight_dots(const Weight& w, int64_t first, int64_t count, int num_x, const typename A::Element* const* x,
                        float* out, int64_t ld, Passing passing) {
  auto go = [&]<class Reader>(Reader*) {
    for_each_group(0, num_x, kMaxM, [&](int64_t m, int here) {
      const int step = rows_at_once(here);
      const int64_t rows_bytes = step * w.row_bytes();
      Fetch fetch{rows_bytes, step};
      if (here < passing.all) {
        fetch.ahead = count * w.row_bytes() + (passing.before + m) * rows_bytes / passing.all;
        fetch.blocks = step * here > passing.all ? 2 : 1;
      }
      dots<Reader, A, true>([&](int64_t r) { return Reader(w, r); }, first, count, here, x + m, w.cols, fetch,
                      out + m * ld, ld);
    });
  };
  switch (w.format) {
    case Format::kF32:
      if constexpr (A::kTakesF32) go(static_cast<F32Reader*>(nullptr));
      break;
    case Format::kBf16: go(static_cast<Bf16Reader*>(nullptr)); break;
    case Format::kFp8: go(static_cast<Fp8Reader*>(nullptr)); break;
    case Format::kNvfp4: break;  // codes.h
  }
  scale_rows(w, first, count, num_x, out, ld, A::unit(w.format));
}

// A multiplies weights of all formats but NVFP4, C those.
template <class A, class C>
struct Vectors {
  using Element = typename A::Element;
  static constexpr int kGroup = std::max(2 * kMaxM, kMaxCodeX);  // activations that pass over a panel together
  static constexpr int64_t kRows = 8;       // a panel's rows are a multiple of this
  static constexpr int64_t kPanel = VENTOUX_ISA::kPanel;
  static constexpr int64_t kLongPanel = 4 * kPanel;  // of what few activations meet

  // Activations, one row after the other as the arithmetic reads them.
  struct Operand {
    Element* data;
    int64_t cols, width;    // width: from one row to the next
    const int64_t* row_of;  // where activation p lies; null: at p
    typename C::Block* blocks;  // the same for NVFP4 weights
    int64_t num_blocks;         // from one row to the next
    int64_t index(int64_t p) const { return row_of ? row_of[p] : p; }
    Element* row(int64_t p) const { return data + index(p) * width; }
  };
  // Activation p is row row_of[p] of x; `ends` bounds the groups that are multiplied by one weight each. `codes`: there
  // are NVFP4 weights among them.
  static Operand gather(Pool& pool, Rows x, const int64_t* row_of, const int64_t*, int64_t, bool codes) {
    Operand in = empty(pool, kSplitX, x.count, x.cols);
    run_rows(pool, x.count, [&](int64_t r) { read_row(x, r, in.row(r)); });
    finish(pool, in, x.count, [&](int64_t) { return x.cols; }, codes);
    in.row_of = row_of;
    return in;
  }
  static Operand empty(Pool& pool, int slot, int64_t count, int64_t cols) {
    // Another 64 bytes: rows a power of two apart would fall into the same few places of a cache.
    const int64_t width = padded(cols) + 64 / int64_t(sizeof(Element));
    void* memory = pool.scratch(slot, size_t(count * width) * sizeof(Element));
    return {static_cast<Element*>(memory), cols, width, nullptr, nullptr, 0};
  }
  // Columns first .. first + count - 1 of activations p .. p + here - 1.
  static void put(const Operand& to, int64_t p, int here, int64_t first, int64_t count, const float* values,
                  int64_t ld) {
    const bool last = first + count == to.cols;  // what pads the last block must be zero
    for (int m = 0; m < here; ++m) {
      write_columns(to.row(p + m), first, count, values + m * ld);
      if (last) pad_row(to.row(p + m), to.cols);
    }
  }
  // After the last `put` of `count` rows, of which p has cols_of(p) columns: at most in.cols.
  template <class Cols>
  static void finish(Pool& pool, Operand& in, int64_t count, const Cols& cols_of, bool codes) {
    if (!codes) return;
    in.num_blocks = code_blocks(in.cols);
    const size_t bytes = size_t(count * in.num_blocks) * sizeof(typename C::Block);
    in.blocks = static_cast<typename C::Block*>(pool.scratch(kBlocks, bytes));
    run_rows(pool, count,
             [&](int64_t p) { C::deal(in.data + p * in.width, cols_of(p), in.blocks + p * in.num_blocks); });
  }
  template <class Group>
  static void for_each_group(int64_t begin, int64_t end, const Group& group) {
    VENTOUX_ISA::for_each_group(begin, end, kGroup, group);
  }

  // Rows first .. first + count - 1 of a weight, to be multiplied with activations begin .. end - 1.
  struct Panel {
    Weight weight;
    int64_t first, count, begin, end;
    Panel(const Weight& w, int64_t first, int64_t count, int64_t begin, int64_t end, int slot = 0)
        : weight(w), first(first), count(count), begin(begin), end(end) {
      if constexpr (A::kWidensFp8)
        if (w.format == Format::kFp8 && end - begin > kMaxM) widen(slot);
    }
    // out[m * ld + i] = <row first + i, activation p + m>
    void dots(const Operand& in, int64_t p, int here, float* out, int64_t ld) const {
      if (weight.format == Format::kNvfp4) {
        const typename C::Block* rows[kGroup];
        for (int m = 0; m < here; ++m) rows[m] = in.blocks + in.index(p + m) * in.num_blocks;
        VENTOUX_ISA::for_each_group(0, here, kMaxCodeX, [&](int64_t m, int some) {
          code_dots<C>(weight, first, count, some, rows + m, out + m * ld, ld);
        });
        scale_rows(weight, first, count, here, out, ld, 1.0f);
      } else {
        const Element* rows[kGroup];
        for (int m = 0; m < here; ++m) rows[m] = in.row(p + m);
        weight_dots<A>(weight, first, count, here, rows, out, ld, {p - begin, end - begin});
      }
    }

   private:
    // Widening takes as long as multiplying with four activations: for several groups of them it is done once. No bit
    // of a result changes.
    void widen(int slot) {
      static thread_local std::vector<char> buffers[2];  // gate and up are in use at once
      buffers[slot].resize(size_t(count * 2 * weight.cols + 2 * kBlock));
      A::widen(weight, first, count, 0, padded(weight.cols) / kBlock, buffers[slot].data(), 2 * weight.cols);
      weight.data = reinterpret_cast<const uint8_t*>(buffers[slot].data());
      weight.format = Format::kBf16;
      weight.row_scales += first;
      first = 0;
      end = begin;  // no activations pass over rows from memory any more: nothing behind these is worth fetching
    }
  };
};

}  // namespace VENTOUX_ISA
}  // namespace ventoux
