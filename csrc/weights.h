// Weight matrices as the checkpoint stores them, row by row: nothing is repacked, so weights are in memory once and the
// reference operators can read the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ventoux {

enum class Format : int { kF32 = 0, kBf16 = 1, kFp8 = 2, kNvfp4 = 3 };

// A [rows, cols] matrix, or `experts` of them one after the other.
//
// FP8 (e4m3) and NVFP4 (e2m1, two codes a byte, low nibble first; one e4m3 scale for every 16 columns) carry a
// multiplier per row, applied to the finished dot product.
struct Weight {
  const uint8_t* data = nullptr;
  const uint8_t* group_scales = nullptr;
  const float* row_scales = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  Format format = Format::kBf16;

  int64_t row_bytes() const {
    switch (format) {
      case Format::kF32: return cols * 4;
      case Format::kBf16: return cols * 2;
      case Format::kFp8: return cols;
      case Format::kNvfp4: return cols / 2;
    }
    return 0;
  }
  const uint8_t* row(int64_t r) const { return data + r * row_bytes(); }
  const uint8_t* row_groups(int64_t r) const { return group_scales + r * (cols / 16); }
  Weight expert(int64_t e) const {
    Weight one = *this;
    one.data = row(e * rows);
    if (group_scales) one.group_scales = row_groups(e * rows);
    if (row_scales) one.row_scales += e * rows;
    return one;
  }
};

// Every e4m3 code as a float; codes below 8 are subnormal (m / 512), 0x7f is NaN. Made by the compiler: a table
// filled at start-up would run code for instructions that the machine may lack.
struct E4m3Table {
  float value[256] = {};
  constexpr E4m3Table() {
    for (int code = 0; code < 256; ++code) {
      const int exponent = (code >> 3) & 15, mantissa = code & 7;
      float magnitude = (exponent ? 8.0f + float(mantissa) : float(mantissa)) / 512.0f;
      for (int e = 1; e < exponent; ++e) magnitude *= 2.0f;
      if ((code & 0x7f) == 0x7f) magnitude = __builtin_nanf("");
      value[code] = code & 0x80 ? -magnitude : magnitude;
    }
  }
};
inline constexpr E4m3Table kE4m3;

// Activations: rows of floats in one of two types.
struct Rows {
  void* data = nullptr;
  int64_t count = 0;
  int64_t cols = 0;
  bool bf16 = true;

  char* row(int64_t r) const { return static_cast<char*>(data) + r * cols * (bf16 ? 2 : 4); }
};

}  // namespace ventoux
