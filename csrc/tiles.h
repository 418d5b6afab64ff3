// The eight tile registers: 16 rows of 64 bytes each, or less as configured. Numbers of tiles are template arguments,
// as they are part of the instruction.
#pragma once

#include <cstdint>

#if defined(VENTOUX_EMULATED)
#include "emulated.h"
#endif

namespace ventoux {
namespace VENTOUX_ISA {

// Operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row of each tile
  uint8_t rows[16] = {};
  void set(int tile, int num_rows, int row_bytes) {
    rows[tile] = uint8_t(num_rows);
    bytes[tile] = uint16_t(row_bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

#if !defined(VENTOUX_EMULATED)

// Not the compiler's intrinsics: gcc's take literal numbers alone, and its tile load does not say that it reads
// memory, so that a store before it may be moved behind it.
inline void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void release() { asm volatile("tilerelease" :::); }
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
// C += A B, A being rows of bf16, B pairs of them: B[k][n] holds columns 2k and 2k + 1 of what meets A's rows.
template <int C, int A, int B>
inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#else

inline void configure(const TileConfig& config) {
  auto& mine = EmulatedTiles::mine();
  for (int t = 0; t < 8; ++t) {
    if (config.rows[t] > 16 || config.bytes[t] > 64) throw std::logic_error("a tile that is too large");
    mine.tile[t] = {config.rows[t], config.bytes[t], {}};
  }
}
inline void release() { EmulatedTiles::mine() = {}; }
template <int T>
inline void tile_zero() {
  auto& tile = EmulatedTiles::mine().tile[T].used();
  std::memset(tile.lane, 0, sizeof tile.lane);
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  auto& tile = EmulatedTiles::mine().tile[T].used();
  std::memset(tile.lane, 0, sizeof tile.lane);
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(tile.lane[r], static_cast<const char*>(from) + r * stride, size_t(tile.bytes));
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  auto& tile = EmulatedTiles::mine().tile[T].used();
  for (int r = 0; r < tile.rows; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tile.lane[r], size_t(tile.bytes));
}
template <int C, int A, int B>
inline void tile_multiply() {
  auto& tile = EmulatedTiles::mine().tile;
  dp_tiles(tile[C].used(), tile[A].used(), tile[B].used());
}

#endif

}  // namespace VENTOUX_ISA
}  // namespace ventoux
