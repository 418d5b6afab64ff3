// Dense weights -> NVFP4, as ops/formats.py defines it, bit for bit. Loops that compilers vectorize; each row is read
// once.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "weights.h"

namespace ventoux {

// The nearest e4m3 code of a number in [2^-9, 448], halves to even.
inline uint8_t to_e4m3(float value) {
  if (value < 0x1p-6f) return uint8_t(std::nearbyint(value * 512.0f));  // subnormal; 8 is the first normal code
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits += 0x7ffff + (bits >> 20 & 1);
  return uint8_t((bits >> 20) - (120 << 3));  // exponents count from 7 instead of 127
}

// One group of 16: its scale's code, and eight bytes of nibbles.
inline uint8_t quantize_group(const float* values, float global_scale, uint8_t* nibbles) {
  float amax = 0.0f;
  for (int i = 0; i < 16; ++i) amax = std::fabs(values[i]) > amax ? std::fabs(values[i]) : amax;
  const float wanted = amax / 6.0f * global_scale;
  const uint8_t code = to_e4m3(wanted < 0x1p-9f ? 0x1p-9f : wanted > 448.0f ? 448.0f : wanted);
  const float scale = kE4m3.value[code] / global_scale;
  uint8_t codes[16];
  for (int i = 0; i < 16; ++i) {
    const float scaled = values[i] / scale, a = std::fabs(scaled);
    // Halves go to the even code.
    const int magnitude =
        (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    codes[i] = uint8_t(magnitude | (scaled < 0.0f) << 3);
  }
  for (int i = 0; i < 8; ++i) nibbles[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
  return code;
}

// `count` values, a whole number of groups.
inline void quantize_nvfp4(const void* values, bool bf16, int64_t count, float global_scale, uint8_t* nibbles,
                           uint8_t* scales) {
  for (int64_t g = 0; g < count / 16; ++g) {
    float group[16];
    if (bf16) {
      const uint16_t* from = static_cast<const uint16_t*>(values) + g * 16;
      for (int i = 0; i < 16; ++i) {
        const uint32_t bits = uint32_t(from[i]) << 16;
        std::memcpy(group + i, &bits, 4);
      }
    } else {
      std::memcpy(group, static_cast<const float*>(values) + g * 16, sizeof(group));
    }
    scales[g] = quantize_group(group, global_scale, nibbles + g * 8);
  }
}

}  // namespace ventoux
