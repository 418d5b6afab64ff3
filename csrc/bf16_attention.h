// Segments of latent attention in bf16, for bf16 queries and a bf16 cache.
//
// Both products are multiply_tiles, on tile registers (AMX, tile_product.h) or by vectors (vector_tiles.h). Scores: 16
// cached rows are tile A where they lie, 16 queries are tile B, so that the softmax has a query in each lane. Weighted
// sums: the weights of 16 queries are tile A, rounded to bf16, two neighbouring keys' latents are the pairs of tile B.
//
// All of a segment's scores are there before its softmax, so nothing is ever rescaled within one. A row's bits do not
// depend on the rows that share its tiles, nor on the keys behind those that it sees: each of these adds a zero.
#pragma once

#include <memory>

#include "attention.h"

#if defined(VENTOUX_TILES)
#include "tile_product.h"
#else
#include "vector_tiles.h"
#endif

namespace ventoux {
namespace VENTOUX_ISA {

static_assert(kSegment % (2 * kTile) == 0 && kQueryRows % kTile == 0);

struct Bf16Segments : Latents {
  static constexpr int64_t kRowStep = kTile;
  // From one query's weights to the next; another 64 bytes, as rows a power of two apart share few places of a cache.
  static constexpr int64_t kWeightPitch = kSegment + kBlock;

  // A thread's room for one segment.
  struct Room {
    alignas(64) float scores[kSegment * kQueryRows];          // [key][query row]
    alignas(64) uint16_t weights[kQueryRows * kWeightPitch];  // [query row][key]
    alignas(64) uint32_t values[2][kSegment / 2 * kTile];     // [even, odd columns][pair of keys][column]
    std::vector<char> staged, zeros;                          // two tiles of keys; one key
  };
  static Room& room() {
    static thread_local const std::unique_ptr<Room> mine = std::make_unique<Room>();
    return *mine;
  }

  // Queries of a block, 16 at a time, become tile B: rounded, [columns / 2][queries] pairs, in the place of the first
  // half of what they were.
  void prepare(Pool& pool, const std::vector<QueryBlock>& blocks) const {
    pool.run(int(blocks.size()), [&](int task) {
      static thread_local std::vector<uint16_t> packed;
      packed.resize(size_t(kTile * query_width));
      const QueryBlock& b = blocks[size_t(task)];
      const int64_t end = (b.token + b.num_tokens) * how.heads;
      for (int64_t row = b.token * how.heads; row < end; row += kTile) {
        const int n = int(std::min<int64_t>(kTile, end - row));
        float* rows = queries + row * query_width;
        for (int64_t i = 0; i < query_width; i += kBlock) {
          auto load_pairs = [&](int r) {
            const float* from = rows + r * query_width + i;
            return joined_bf16({load(from), load(from + kLanes)});
          };
          transpose(load_pairs, n, kColumnPairs, packed.data() + i * n, n);
        }
        std::memcpy(rows, packed.data(), size_t(n * query_width) * 2);
      }
    });
  }

  void segment(int64_t sequence, int64_t row, int num_rows, const int64_t* sees, int64_t first, int64_t end,
               int64_t then, const Softmax& state) const {
    Room& own = room();
    own.staged.resize(size_t(2 * kTile * query_width) * 2);
    own.zeros.resize(size_t(query_width) * 2);
    const char* keys[kSegment + kBlock];
    const int64_t count = end - first, whole = padded(count), ahead = std::min<int64_t>(then - end, kBlock);
    find_keys(sequence, first, count + ahead, keys);
    if (ahead == 0) std::fill(keys + count, keys + whole, own.zeros.data());
    const TileScope tiles(kTile, kTile);
    score(own, keys, whole, ahead, row, num_rows);
    for (int r = 0; r < num_rows; r += kTile) soften(own, r, std::min(kTile, num_rows - r), sees, first, whole, state);
    weigh_keys(own, keys, whole, num_rows, state);
  }

 private:
  int64_t key_bytes() const { return query_width * 2; }
  // The columns of a key's block of 32 that starts at `column`, zeros behind the last.
  __m512i load_block(const char* key, int64_t column) const {
    const int64_t left = std::min<int64_t>(kBlock, cache.cols - column);
    return _mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << left) - 1), key + column * 2);
  }

  // 16 keys as rows of a tile: where they lie if they follow each other and fill blocks, else copied to `to`.
  const char* tile_of(const char* const* keys, char* to) const {
    bool direct = cache.cols == query_width;
    for (int s = 1; s < kTile; ++s) direct &= keys[s] == keys[0] + s * key_bytes();
    if (direct) return keys[0];
    for (int s = 0; s < kTile; ++s)
      for (int64_t i = 0; i < query_width; i += kBlock)
        _mm512_storeu_si512(to + s * key_bytes() + i * 2, load_block(keys[s], i));
    return to;
  }

  void score(Room& own, const char* const* keys, int64_t whole, int64_t ahead, int64_t row, int num_rows) const {
    for (int64_t s = 0; s < whole; s += kBlock) {
      TileRows w{key_bytes(), {}};
      for (int t = 0; t < 2; ++t) w.at[t] = tile_of(keys + s + t * kTile, own.staged.data() + t * kTile * key_bytes());
      for (int r = 0; r < num_rows; r += 2 * kTile) {
        // The first queries that meet these keys fetch the next ones, which mostly lie in one page each: behind 32,768
        // tokens, those of the next segment as well are worth 1.1 times the speed.
        for (int t = 0; t < 2; ++t) {
          const int64_t next = s + kBlock + t * kTile;
          w.next[t] = r == 0 && next < whole + ahead ? keys[next] : nullptr;
        }
        const char* x[2];
        int64_t pitch[2];
        for (int b = 0; b < 2 && r + b * kTile < num_rows; ++b) {
          // Where there are fewer than 16 queries, what comes behind them is read with them, and never looked at.
          x[b] = reinterpret_cast<const char*>(queries + (row + r + b * kTile) * query_width);
          pitch[b] = 4 * std::min(kTile, num_rows - r - b * kTile);
        }
        auto go = [&]<int B>() {
          multiply_tiles<2, B>(w, query_width / kBlock, x, pitch, own.scores + s * kQueryRows + r, kQueryRows);
        };
        r + kTile < num_rows ? go.template operator()<2>() : go.template operator()<1>();
      }
    }
  }

  // Scores of rows r .. r + n - 1, a lane each, -> weights relative to the largest, as bf16. Their sum is that of the
  // rounded ones: so the result is a mean of the latents, and a rounding error shifts it only as far as latents differ.
  void soften(Room& own, int r, int n, const int64_t* sees, int64_t first, int64_t whole, const Softmax& state) const {
    alignas(64) int32_t visible[kTile] = {};
    for (int i = 0; i < n; ++i) visible[i] = int32_t(std::clamp<int64_t>(sees[r + i] - first, 0, kSegment));
    const __m512i seen = _mm512_load_si512(visible);
    const __m512 scale = _mm512_set1_ps(how.scale), none = _mm512_set1_ps(-INFINITY);
    auto score_of = [&](int64_t s) {
      const __mmask16 sees_it = _mm512_cmpgt_epi32_mask(seen, _mm512_set1_epi32(int(s)));
      return _mm512_mask_mul_ps(none, sees_it, scale, _mm512_load_ps(own.scores + s * kQueryRows + r));
    };
    __m512 largest = none;
    for (int64_t s = 0; s < whole; ++s) largest = _mm512_max_ps(largest, score_of(s));
    // The maximum may drop a NaN: it comes through as the weight of its key. A row that sees nothing has weights of
    // zero, not what minus infinity less itself gives.
    const V base{_mm512_maskz_mov_ps(_mm512_test_epi32_mask(seen, seen), largest)};
    V total = zero();
    auto weight = [&](int64_t s) {
      const V p = exp(V{score_of(s)} - base);
      total = total + V{_mm512_castsi512_ps(_mm512_and_si512(bf16_bits(p), _mm512_set1_epi32(int(0xffff0000))))};
      return p;
    };
    for (int64_t s = 0; s < whole; s += kBlock) {
      __m512i pairs[kColumnPairs];
      for (int k = 0; k < kColumnPairs; ++k) {
        const V even = weight(s + 2 * k);
        pairs[k] = joined_bf16({even, weight(s + 2 * k + 1)});
      }
      transpose([&](int k) { return pairs[k]; }, kColumnPairs, kTile, own.weights + r * kWeightPitch + s,
                kWeightPitch / 2);
    }
    store(state.largest + r, V{largest});
    store(state.total + r, total);
  }

  // state.sums = weights times latents. The even columns of a block are one tile, the odd ones another: that is how
  // sums are split.
  void weigh_keys(Room& own, const char* const* keys, int64_t whole, int num_rows, const Softmax& state) const {
    const char* x[2] = {reinterpret_cast<const char*>(own.values[0]), reinterpret_cast<const char*>(own.values[1])};
    const int64_t pitch[2] = {4 * kTile, 4 * kTile};
    for (int64_t column = 0; column < latent_width; column += kBlock) {
      for (int64_t s = 0; s < whole; s += 2) {
        const __m512i a = load_block(keys[s], column), b = load_block(keys[s + 1], column);
        _mm512_store_si512(own.values[0] + s / 2 * kTile,
                           _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)));
        _mm512_store_si512(own.values[1] + s / 2 * kTile,
                           _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b));
      }
      for (int r = 0; r < num_rows; r += 2 * kTile) {
        const TileRows w = two_tiles(reinterpret_cast<const char*>(own.weights + r * kWeightPitch), kWeightPitch * 2);
        float* out = state.sums + r * latent_width + column;
        auto go = [&]<int R>() { multiply_tiles<R, 2>(w, whole / kBlock, x, pitch, out, latent_width); };
        r + kTile < num_rows ? go.template operator()<2>() : go.template operator()<1>();
      }
    }
  }
};

}  // namespace VENTOUX_ISA
}  // namespace ventoux
