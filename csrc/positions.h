// Where tokens stand, as attention needs it. The same code for all instruction sets: a few microseconds of a step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pool.h"

namespace ventoux {

struct Positions {
  float* cos;     // [T, R / 2]
  float* sin;     // [T, R / 2]
  float* scales;  // [T], of queries
};

// Angles are position * frequency; scales are 1 + beta ln(1 + floor(position / original)).
inline void place(Pool& pool, const int64_t* positions, int64_t count, const float* frequencies, int64_t lanes,
                  int64_t original, float beta, const Positions& out) {
  constexpr int64_t kTogether = 64;
  pool.run(int((count + kTogether - 1) / kTogether), [&](int task) {
    for (int64_t t = task * kTogether; t < std::min(count, (task + 1) * kTogether); ++t) {
      for (int64_t i = 0; i < lanes; ++i) {
        const float angle = float(positions[t]) * frequencies[i];
        out.cos[t * lanes + i] = std::cos(angle);
        out.sin[t * lanes + i] = std::sin(angle);
      }
      out.scales[t] = 1.0f + beta * std::log1p(float(positions[t] / original));
    }
  });
}

}  // namespace ventoux
