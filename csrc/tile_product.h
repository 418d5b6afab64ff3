// The product of tile registers (AMX): 32 weight rows with 32 activations at a time.
//
// A result is one chain over steps of 32 columns in rising order; within a step, TDPBF16PS adds even and odd columns
// in a chain each. Nothing else decides its bits: one activation uses the same instruction as many do, with narrower
// tiles.
//
// Weight rows are tile A straight from memory, 16 of them 64 bytes each. Activations are tile B, which holds columns in
// pairs; they are brought into that order once per operator, in blocks of up to 16.
#pragma once

#include <vector>

#include "bf16.h"
#include "product.h"
#include "tile_rows.h"
#include "tiles.h"

namespace ventoux {
namespace VENTOUX_ISA {

// Tiles 0 to 3 are sums (2 r + b: weight rows r, activations b), 4 and 5 weight rows, 6 and 7 activations. Configured
// while this lives; afterwards the thread holds no tiles, so that switching away from it costs no more than before.
class TileScope {
 public:
  TileScope(int block0, int block1) {
    TileConfig config;
    for (int r = 0; r < 2; ++r) {
      config.set(4 + r, kTile, 2 * kBlock);
      config.set(2 * r, kTile, 4 * block0);
      if (block1) config.set(2 * r + 1, kTile, 4 * block1);
    }
    config.set(6, kColumnPairs, 4 * block0);
    if (block1) config.set(7, kColumnPairs, 4 * block1);
    configure(config);
  }
  ~TileScope() { release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int R, int B>
inline void clear_sums() {
  tile_zero<0>();
  if constexpr (B == 2) tile_zero<1>();
  if constexpr (R == 2) tile_zero<2>();
  if constexpr (R == 2 && B == 2) tile_zero<3>();
}

// sums += `blocks` steps of R tiles of weight rows and B blocks of activations.
template <int R, int B>
inline void multiply_steps(const TileRows& w, int64_t blocks, const char* const* x, const int64_t* x_pitch) {
  for (int64_t i = 0; i < blocks; ++i) {
    tile_load<6>(x[0] + i * kColumnPairs * x_pitch[0], x_pitch[0]);
    if constexpr (B == 2) tile_load<7>(x[1] + i * kColumnPairs * x_pitch[1], x_pitch[1]);
    tile_load<4>(w.at[0] + i * 2 * kBlock, w.pitch);
    tile_multiply<0, 4, 6>();
    if constexpr (B == 2) tile_multiply<1, 4, 7>();
    if constexpr (R == 2) {
      tile_load<5>(w.at[1] + i * 2 * kBlock, w.pitch);
      tile_multiply<2, 5, 6>();
      if constexpr (B == 2) tile_multiply<3, 5, 7>();
    }
    for (int t = 0; t < R; ++t)
      if (w.next[t])
        for (int r = 0; r < kTile; ++r) __builtin_prefetch(w.next[t] + i * 2 * kBlock + r * w.pitch, 0, 2);
  }
}

// out[row * ld + column] = R x B tiles of sums
template <int R, int B>
inline void multiply_tiles(const TileRows& w, int64_t blocks, const char* const* x, const int64_t* x_pitch, float* out,
                           int64_t ld) {
  clear_sums<R, B>();
  multiply_steps<R, B>(w, blocks, x, x_pitch);
  tile_store<0>(out, ld * 4);
  if constexpr (B == 2) tile_store<1>(out + kTile, ld * 4);
  if constexpr (R == 2) tile_store<2>(out + kTile * ld, ld * 4);
  if constexpr (R == 2 && B == 2) tile_store<3>(out + kTile * ld + kTile, ld * 4);
}

// Bf16::widen, with zeros in the rows that are missing to whole tiles.
inline void widen_tiles(const Weight& w, int64_t first, int64_t count, int64_t begin, int64_t end, char* to,
                        int64_t pitch) {
  Bf16::widen(w, first, count, begin, end, to, pitch);
  for (int64_t r = count; r % kTile; ++r) std::memset(to + r * pitch, 0, size_t((end - begin) * 2 * kBlock));
}

struct Tiles {
  using Element = uint16_t;
  static constexpr int kGroup = 2 * kTile;
  static constexpr int64_t kRows = 2 * kTile;
  // Read again by each group of activations: with 4096 columns 1 MiB of the second-level cache.
  static constexpr int64_t kPanel = 128, kLongPanel = kPanel;
  // Columns of stored codes that are widened before they are multiplied, where one group is all there is: 32 KiB.
  static constexpr int64_t kChunk = 16;  // in blocks

  // Activations in blocks of up to 16 of a group: block [p, p + n) lies at data + p * width as [cols / 2][n] pairs.
  struct Operand {
    Element* data;
    int64_t cols, width;
  };
  static Operand empty(Pool& pool, int slot, int64_t count, int64_t cols) {
    return {static_cast<Element*>(pool.scratch(slot, size_t(count * padded(cols)) * 2)), cols, padded(cols)};
  }
  static Operand gather(Pool& pool, Rows x, const int64_t* row_of, const int64_t* ends, int64_t num_groups, bool) {
    std::vector<std::pair<int64_t, int>> blocks;
    for (int64_t g = 0; g < num_groups; ++g)
      for (int64_t p = ends[g]; p < ends[g + 1]; p += kTile)
        blocks.push_back({p, int(std::min<int64_t>(kTile, ends[g + 1] - p))});
    const Operand in = empty(pool, kSplitX, ends[num_groups], x.cols);
    pool.run(int(blocks.size()), [&](int task) {
      const auto [p, n] = blocks[size_t(task)];
      const char* rows[kTile];
      for (int c = 0; c < n; ++c) rows[c] = x.row(row_of ? row_of[p + c] : p + c);
      for (int64_t i = 0; i < in.width / kBlock; ++i) {
        const int64_t left = std::min<int64_t>(kBlock, x.cols - i * kBlock);
        const __mmask32 there = __mmask32((uint64_t(1) << left) - 1);
        auto load = [&](int c) { return _mm512_maskz_loadu_epi16(there, rows[c] + i * 2 * kBlock); };
        transpose(load, n, kColumnPairs, in.data + p * in.width + i * kBlock * n, n);
      }
    });
    return in;
  }
  // Columns first .. first + count - 1 of a group's activations, rounded; `first` is even. What pads the last block
  // is zero.
  static void put(const Operand& to, int64_t p, int here, int64_t first, int64_t count, const float* values,
                  int64_t ld) {
    const int64_t all = first + count == to.cols ? padded(to.cols) - first : count;
    uint16_t rows[kTile][kPanel + kBlock] = {};
    for (int64_t begin = 0; begin < here; begin += kTile) {
      const int n = int(std::min<int64_t>(kTile, here - begin));
      for (int c = 0; c < n; ++c) narrow(values + (begin + c) * ld, count, rows[c]);
      Element* block = to.data + (p + begin) * to.width + first * n;
      for (int64_t i = 0; i < all; i += kBlock) {
        auto load = [&](int c) { return _mm512_loadu_si512(rows[c] + i); };
        transpose(load, n, int(std::min<int64_t>(kBlock, all - i)) / 2, block + i * n, n);
      }
    }
  }
  template <class Cols>
  static void finish(Pool&, Operand&, int64_t, const Cols&, bool) {}  // complete as it is
  template <class Group>
  static void for_each_group(int64_t begin, int64_t end, const Group& group) {
    for (int64_t p = begin; p < end; p += kGroup) group(p, int(std::min<int64_t>(kGroup, end - p)));
  }

  class Panel;
};

// Rows first .. first + count - 1 of a weight, to be multiplied with activations begin .. end - 1.
class Tiles::Panel {
 public:
  Panel(const Weight& w, int64_t first, int64_t count, int64_t begin, int64_t end, int slot = 0)
      : weight_(w), first_(first), count_(count), begin_(begin), widened_(buffer(slot)) {
    blocks_ = padded(w.cols) / kBlock;
    // Rows that fill whole tiles are read where they are.
    direct_ = w.format == Format::kBf16 && w.cols % kBlock == 0 && count % kTile == 0;
    if (direct_) return;
    at_once_ = end - begin > kGroup ? blocks_ : std::min(blocks_, kChunk);
    // Another 64 bytes: rows a power of two apart would fall into the same few places of a cache.
    pitch_ = (at_once_ + 1) * 2 * kBlock;
    const bool all = at_once_ == blocks_;
    const int64_t rows = (count + kTile - 1) / kTile * kTile;
    widened_.resize(size_t((all ? rows : 2 * kTile) * pitch_));
    if (all) widen_tiles(w, first, count, 0, blocks_, widened_.data(), pitch_);
  }

  // out[m * ld + i] = <row first + i, activation p + m>
  void dots(const Operand& in, int64_t p, int here, float* out, int64_t ld) const {
    const int n[2] = {std::min(here, kTile), here - std::min(here, kTile)};
    const TileScope tiles(n[0], n[1]);
    for (int64_t r = 0; r < count_; r += 2 * kTile) {
      const int rows = int(std::min<int64_t>(2 * kTile, count_ - r));
      if (rows > kTile) {
        n[1] ? go<2, 2>(in, p, n, r, rows, out + r, ld) : go<2, 1>(in, p, n, r, rows, out + r, ld);
      } else {
        n[1] ? go<1, 2>(in, p, n, r, rows, out + r, ld) : go<1, 1>(in, p, n, r, rows, out + r, ld);
      }
    }
    scale_rows(weight_, first_, count_, here, out, ld, 1.0f);
  }

 private:
  // A thread's room for widened weights; gate and up are in use at once.
  static std::vector<char>& buffer(int slot) {
    static thread_local std::vector<char> buffers[2];
    return buffers[slot];
  }

  template <int R, int B>
  void go(const Operand& in, int64_t p, const int* n, int64_t r, int rows, float* out, int64_t ld) const {
    const char* x[2];
    int64_t x_pitch[2];
    for (int b = 0; b < B; ++b) {
      x[b] = reinterpret_cast<const char*>(in.data + (p + b * kTile) * in.width);
      x_pitch[b] = 4 * n[b];
    }
    clear_sums<R, B>();
    if (direct_) {
      const int64_t pitch = weight_.row_bytes(), ahead = p == begin_ ? 2 * kTile * pitch : 0;
      const char* from = reinterpret_cast<const char*>(weight_.row(first_ + r));
      multiply_steps<R, B>(two_tiles(from, pitch, ahead), blocks_, x, x_pitch);
    } else if (at_once_ == blocks_) {
      multiply_steps<R, B>(two_tiles(widened_.data() + r * pitch_, pitch_), blocks_, x, x_pitch);
    } else {
      for (int64_t i = 0; i < blocks_; i += at_once_) {
        const int64_t end = std::min(blocks_, i + at_once_);
        widen_tiles(weight_, first_ + r, rows, i, end, widened_.data(), pitch_);
        multiply_steps<R, B>(two_tiles(widened_.data(), pitch_), end - i, x, x_pitch);
        for (int b = 0; b < B; ++b) x[b] += (end - i) * kColumnPairs * x_pitch[b];
      }
    }
    alignas(64) float sums[kTile][kTile] = {};
    auto put_tile = [&](int row_tile, int block) {
      auto load = [&](int row) { return _mm512_load_si512(sums[row]); };
      const int64_t to = block * kTile * ld + row_tile * kTile;
      transpose(load, std::min(kTile, rows - row_tile * kTile), n[block], out + to, ld);
    };
    tile_store<0>(sums, sizeof sums[0]);
    put_tile(0, 0);
    if constexpr (B == 2) {
      tile_store<1>(sums, sizeof sums[0]);
      put_tile(0, 1);
    }
    if constexpr (R == 2) {
      tile_store<2>(sums, sizeof sums[0]);
      put_tile(1, 0);
    }
    if constexpr (R == 2 && B == 2) {
      tile_store<3>(sums, sizeof sums[0]);
      put_tile(1, 1);
    }
  }

  Weight weight_;
  int64_t first_, count_, begin_;
  std::vector<char>& widened_;
  int64_t blocks_ = 0, at_once_ = 0, pitch_ = 0;
  bool direct_ = false;
};

}  // namespace VENTOUX_ISA
}  // namespace ventoux
