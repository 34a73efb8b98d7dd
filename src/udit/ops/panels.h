// Tiles of sums in registers, over panels: columns of a matrix two vectors wide, one row of them after the other.

#pragma once

#include <type_traits>

#include "vectors.h"

namespace {

#if defined(__AVX512F__)
constexpr int ROWS = 12;  // of a tile of sums: with what it multiplies it fills the registers
#else
constexpr int ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;

// M rows of a panel.
template <int M>
struct Tile {
  Vector one[M], two[M];

  inline __attribute__((always_inline)) Tile() : one{}, two{} {}

  inline __attribute__((always_inline)) Tile(const float* from, int64_t step) {
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      one[i] = load(from + i * step);
      two[i] = load(from + i * step + LANES);
    }
  }

  // Adds A [M, K], by strides, times a panel's K rows.
  inline __attribute__((always_inline)) void add(const float* a, int64_t row, int64_t column, const float* b, int K) {
    for (int k = 0; k < K; k++, a += column, b += PANEL) {
      Vector left = load(b), right = load(b + LANES);
#pragma GCC unroll 12
      for (int i = 0; i < M; i++) {
        float x = a[i * row];
        one[i] += x * left;
        two[i] += x * right;
      }
    }
  }

  // Adds the sums to what is there.
  inline __attribute__((always_inline)) void put_on(float* to, int64_t step) const {
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      store(to + i * step, load(to + i * step) + one[i]);
      store(to + i * step + LANES, load(to + i * step + LANES) + two[i]);
    }
  }

  inline __attribute__((always_inline)) void put(float* to, int64_t step) const {
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      store(to + i * step, one[i]);
      store(to + i * step + LANES, two[i]);
    }
  }
};

// Calls ``run`` with m <= M as a constant.
template <int M, typename Run>
void constant(int m, const Run& run) {
  if (m == M)
    run(std::integral_constant<int, M>());
  else if constexpr (M > 1)
    constant<M - 1>(m, run);
}

}  // namespace
