// Products of small matrices, a tile of sums in registers at a time.

#pragma once

#include "vectors.h"

namespace {

// The larger; b where either is not a number.
inline Vector larger(Vector a, Vector b) {
#if defined(__AVX__) && !defined(__AVX512F__)
  return __builtin_ia32_maxps256(a, b);  // GCC finds it by itself only where neither is a constant
#else
  return a > b ? a : b;
#endif
}

// Where a product goes: over what is there or on top of it, and if asked for the columns' largest to ``largest``.
struct Place {
  float* c;
  int64_t ldc;
  bool add = false;
  float* largest = nullptr;
};

// M rows of C, V vectors wide, some times from row i0 on, of A [.., K] B [K, V vectors]; A by strides, B by rows.
template <int M, int V>
__attribute__((noinline)) void strip(int i0, int times, const float* a, int64_t row, int64_t column, const float* b,
                                     int64_t ldb, int K, Place to) {
  float* c = to.c + i0 * to.ldc;
  for (a += i0 * row; times > 0; times--, a += M * row, c += M * to.ldc) {
    const float *left = a, *right = b;
    Vector sum[M][V] = {};
#pragma GCC unroll 2
    for (int k = 0; k < K; k++, left += column, right += ldb) {
      Vector x[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) x[v] = load(right + v * LANES);
#pragma GCC unroll 12
      for (int i = 0; i < M; i++) {
        float y = left[i * row];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[i][v] += y * x[v];
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      float* at = c + v * LANES;
      if (to.add) {
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) sum[i][v] += load(at + i * to.ldc);
      }
#pragma GCC unroll 12
      for (int i = 0; i < M; i++) store(at + i * to.ldc, sum[i][v]);
      if (!to.largest) continue;
      Vector most = load(to.largest + v * LANES);
#pragma GCC unroll 12
      for (int i = 0; i < M; i++) most = larger(sum[i][v], most);
      store(to.largest + v * LANES, most);
    }
  }
}

template <int M, int V>
void strip_of(int m, int i0, int times, const float* a, int64_t row, int64_t column, const float* b, int64_t ldb, int K,
              Place to) {
  if (m == M)
    strip<M, V>(i0, times, a, row, column, b, ldb, K, to);
  else if constexpr (M > 1)
    strip_of<M - 1, V>(m, i0, times, a, row, column, b, ldb, K, to);
}

// C [M, n vectors] of A [M, K] B [K, n vectors], in tiles of two heights, one more than the other; their sums fill
// AVX2's registers.
inline void product(const float* a, int64_t row, int64_t column, const float* b, int64_t ldb, int M, int n, int K,
                    Place to) {
  for (int v = 0; v < n; v += 2, b += 2 * LANES) {
    bool pair = v + 2 <= n;
    int most = pair ? 6 : 12, tiles = (M + most - 1) / most, low = M / tiles, high = M - tiles * low;
    for (int part = 0; part < 2; part++) {
      int m = part ? low : low + 1, i0 = part ? high * (low + 1) : 0, times = part ? tiles - high : high;
      if (times == 0) continue;
      if (pair)
        strip_of<6, 2>(m, i0, times, a, row, column, b, ldb, K, to);
      else
        strip_of<12, 1>(m, i0, times, a, row, column, b, ldb, K, to);
    }
    to.c += 2 * LANES;
    if (to.largest) to.largest += 2 * LANES;
  }
}

}  // namespace
