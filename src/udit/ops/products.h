// Products of small matrices, a tile of sums in registers at a time.

#pragma once

#include "panels.h"

namespace {

// The larger; b where either is not a number.
inline Vector larger(Vector a, Vector b) {
#if defined(__AVX__) && !defined(__AVX512F__)
  return __builtin_ia32_maxps256(a, b);  // GCC finds it by itself only where neither is a constant
#else
  return a > b ? a : b;
#endif
}

// What becomes of M x V sums, those of C's columns j on: they go to ``c``, or on top of what is there.
struct Put {
  bool add = false;
  template <int M, int V>
  void operator()(const Vector (&sum)[M][V], int, float* c, int64_t ldc) const {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++)
#pragma GCC unroll 12
      for (int i = 0; i < M; i++) {
        float* at = c + i * ldc + v * LANES;
        store(at, add ? load(at) + sum[i][v] : sum[i][v]);
      }
  }
};

// M rows of C, V vectors wide, some times from row i0 on, of A [.., K] B [K, V vectors]; A by strides, B by rows.
template <int M, int V, typename Finish>
__attribute__((noinline)) void strip(int i0, int times, const float* a, int64_t row, int64_t column, const float* b,
                                     int64_t ldb, int j, int K, float* c, int64_t ldc, const Finish& finish) {
  for (int i = i0; i < i0 + times * M; i += M) {
    const float *left = a + i * row, *right = b;
    Vector sum[M][V] = {};
#pragma GCC unroll 2
    for (int k = 0; k < K; k++, left += column, right += ldb) {
      Vector x[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) x[v] = load(right + v * LANES);
#pragma GCC unroll 12
      for (int m = 0; m < M; m++) {
        float y = left[m * row];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[m][v] += y * x[v];
      }
    }
    finish(sum, j, c + i * ldc, ldc);
  }
}

// C [M, n vectors] of A [M, K] B [K, n vectors], in tiles of two heights, one more than the other; their sums fill
// AVX2's registers, and ``finish`` takes them from there.
template <typename Finish>
void product(const float* a, int64_t row, int64_t column, const float* b, int64_t ldb, int M, int n, int K, float* c,
             int64_t ldc, const Finish& finish) {
  for (int v = 0; v < n; v += 2) {
    bool pair = v + 2 <= n;
    int most = pair ? 6 : 12, tiles = (M + most - 1) / most, low = M / tiles, high = M - tiles * low, j = v * LANES;
    for (int part = 0; part < 2; part++) {
      int m = part ? low : low + 1, i0 = part ? high * (low + 1) : 0, times = part ? tiles - high : high;
      if (times == 0) continue;
      if (pair)
        constant<6>(m, [&](auto h) { strip<h, 2>(i0, times, a, row, column, b + j, ldb, j, K, c + j, ldc, finish); });
      else
        constant<12>(m, [&](auto h) { strip<h, 1>(i0, times, a, row, column, b + j, ldb, j, K, c + j, ldc, finish); });
    }
  }
}

}  // namespace
