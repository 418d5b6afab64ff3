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

template <class P>
struct Bf16Segments : Latents {
  using Product = P;
  using Query = uint16_t;
  static constexpr int64_t kRowStep = kTile;
  Query* queries;  // [T * H, query_width]; once they are prepared, each 16 of a block as [columns / 2][queries] pairs
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

  static void absorb(Pool& pool, const Rows& q, const Weight& kv_b, const Attention& how, Query* queries,
                     int64_t width) {
    const int64_t H = how.heads, C = how.latent, pitch = padded(how.nope);
    constexpr int64_t kTokens = 48;
    const int64_t token_blocks = (q.count + kTokens - 1) / kTokens;
    pool.run(int(token_blocks * H), [&](int task) {
      const int64_t h = task % H, first = task / H * kTokens, count = std::min(kTokens, q.count - first);
      // A head's columns of all tokens, side by side: where they lie they are a power of two apart.
      static thread_local std::vector<Query> nope;
      nope.assign(size_t(count * pitch), 0);
      for (int64_t m = 0; m < count; ++m) {
        const Query* row = reinterpret_cast<const Query*>(q.row(first + m)) + h * (how.nope + how.rope.width);
        std::memcpy(&nope[size_t(m * pitch)], row, size_t(how.nope) * 2);
      }
      Query* to = queries + (first * H + h) * width;
      // Rows of W_UK come from memory for few tokens: read from end to end, all of their columns at a time.
      auto go = [&]<int M, int B>() {
        absorb_head<M, B>(nope.data(), pitch, int(count), kv_b, how, h, how.query_scales + first, to, H * width);
      };
      count == 1   ? go.template operator()<1, 8>()
      : count == 2 ? go.template operator()<2, 4>()
      : count <= 4 ? go.template operator()<4, 2>()
                   : go.template operator()<8, 1>();
      for (int64_t m = 0; m < count; ++m) turn_query(q, how, first + m, h, to + m * H * width + C, width - C);
    });
  }

  // The latent queries of one head, M tokens and B blocks of columns at a time. Pairs of W_UK's rows are chained,
  // rising, as bf16 products are; the position's scale comes last. (Behind an odd last row lies one of W_UV, which
  // meets a zero; weights are finite.)
  template <int M, int B>
  static void absorb_head(const Query* nope, int64_t pitch, int count, const Weight& kv_b, const Attention& how,
                          int64_t h, const float* scales, Query* queries, int64_t ld) {
    const int64_t N = how.nope, C = how.latent;
    const char* rows = reinterpret_cast<const char*>(kv_b.row(h * (N + how.value)));
    for (int64_t column = 0; column < C; column += B * kBlock) {
      __mmask32 there[B];
      for (int b = 0; b < B; ++b)
        there[b] = __mmask32((uint64_t(1) << std::clamp<int64_t>(C - column - b * kBlock, 0, kBlock)) - 1);
      for (int first = 0; first < count; first += M) {
        // The last token takes the place of those that are missing to M.
        auto token = [&](int m) { return std::min(first + m, count - 1); };
        const Query* x[M];
        V even[M][B], odd[M][B];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          x[m] = nope + token(m) * pitch;
#pragma GCC unroll 8
          for (int b = 0; b < B; ++b) even[m][b] = odd[m][b] = zero();
        }
        for (int64_t n = 0; n < N; n += 2) {
          const char* row = rows + (n * C + column) * 2;
#pragma GCC unroll 8
          for (int b = 0; b < B; ++b) {
            const __m512i one = _mm512_maskz_loadu_epi16(there[b], row + b * 2 * kBlock);
            const __m512i two = _mm512_maskz_loadu_epi16(there[b], row + C * 2 + b * 2 * kBlock);
            const __m512i evens = _mm512_mask_blend_epi16(0xaaaaaaaa, one, _mm512_slli_epi32(two, 16));
            const __m512i odds = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(one, 16), two);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
              int32_t pair;
              std::memcpy(&pair, x[m] + n, 4);
              const __m512i both = _mm512_set1_epi32(pair);
              even[m][b] = {dpbf16(even[m][b].v, both, evens)};
              odd[m][b] = {dpbf16(odd[m][b].v, both, odds)};
            }
          }
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const V s4 = splat(scales[token(m)]);
#pragma GCC unroll 8
          for (int b = 0; b < B; ++b)
            _mm512_mask_storeu_epi16(queries + token(m) * ld + column + b * kBlock, there[b],
                                     joined_bf16({even[m][b] * s4, odd[m][b] * s4}));
        }
      }
    }
  }

  // The part of a head's query that is turned, times the position's scale, and zeros up to `width` columns.
  static void turn_query(const Rows& q, const Attention& how, int64_t t, int64_t h, Query* to, int64_t width) {
    const int64_t R = how.rope.width;
    const Query* from = reinterpret_cast<const Query*>(q.row(t)) + h * (how.nope + R) + how.nope;
    const V s4 = splat(how.query_scales[t]);
    for (int64_t i = 0; i < width; i += kBlock) {
      const auto mask = [&](int64_t end) { return (uint64_t(1) << std::clamp<int64_t>(end - i, 0, kBlock)) - 1; };
      const __mmask32 there = __mmask32(mask(R));
      const __mmask16 pairs = __mmask16((1u << (std::clamp<int64_t>(R - i, 0, kBlock) / 2)) - 1);
      const __m512i raw = _mm512_maskz_loadu_epi16(there, from + i);
      const V even{_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))};
      const V odd{_mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(int(0xffff0000))))};
      const V cos{_mm512_maskz_loadu_ps(pairs, how.rope.cos + (t * R + i) / 2)};
      const V sin{_mm512_maskz_loadu_ps(pairs, how.rope.sin + (t * R + i) / 2)};
      const Pair turned{(even * cos - odd * sin) * s4, (even * sin + odd * cos) * s4};
      _mm512_mask_storeu_epi16(to + i, __mmask32(mask(width)), joined_bf16(turned));
    }
  }

  // Queries of a block, 16 at a time, become tile B.
  void prepare(Pool& pool, const std::vector<QueryBlock>& blocks) const {
    pool.run(int(blocks.size()), [&](int task) {
      static thread_local std::vector<uint16_t> packed;
      packed.resize(size_t(kTile * query_width));
      const QueryBlock& b = blocks[size_t(task)];
      const int64_t end = (b.token + b.num_tokens) * how.heads;
      for (int64_t row = b.token * how.heads; row < end; row += kTile) {
        const int n = int(std::min<int64_t>(kTile, end - row));
        Query* rows = queries + row * query_width;
        for (int64_t i = 0; i < query_width; i += kBlock) {
          auto load_pairs = [&](int r) { return _mm512_loadu_si512(rows + r * query_width + i); };
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
