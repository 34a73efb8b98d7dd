// Matrix products of rows with a weight, C [M, N] = A [M, K] B + bias, in float.
//
// B is [K, N], or a weight [N, K] across. A task packs some columns of B, as many as the second cache holds, into
// panels of two vectors, and takes a share of the rows. A tile's sums stay in registers over a stretch of K. Every sum
// runs in an order that depends on K alone.

#include <algorithm>
#include <memory>

#include "columns.h"
#include "panels.h"

namespace {

constexpr int STRETCH = 768;     // of K: a panel and a tile's rows stay near
constexpr int PACKED = 1 << 15;  // floats of B's columns at once: these and the next ones fit the second cache
constexpr int LINE = 16;         // floats of a cache line
constexpr int READ = 1 << 14;    // floats of A's rows at once

// ``columns`` of B from the ``first`` on into panels [K, PANEL], zeros where B ends.
void pack(const float* b, bool across, int N, int K, int first, int columns, float* out) {
  for (int j = 0; j < columns; j += PANEL, out += int64_t(K) * PANEL) {
    int n = std::min(PANEL, N - first - j);
    if (!across) {
      for (int k = 0; k < K; k++) {
        const float* from = b + int64_t(k) * N + first + j;
        float* to = out + int64_t(k) * PANEL;
        if (n == PANEL)
          std::memcpy(to, from, sizeof(float) * PANEL);
        else
          for (int i = 0; i < PANEL; i++) to[i] = i < n ? from[i] : 0.0f;
      }
      continue;
    }
    const float* from = b + int64_t(first + j) * K;
    int k = 0;
    if (n == PANEL)
      for (; k + LANES <= K; k += LANES)
        for (int i = 0; i < PANEL; i += LANES) {
          Vector x[LANES];
#pragma GCC unroll 16
          for (int l = 0; l < LANES; l++) x[l] = load(from + int64_t(i + l) * K + k);
          exchange(x);
#pragma GCC unroll 16
          for (int l = 0; l < LANES; l++) store(out + int64_t(k + l) * PANEL + i, x[l]);
        }
    for (; k < K; k++)
      for (int i = 0; i < PANEL; i++) out[int64_t(k) * PANEL + i] = i < n ? from[int64_t(i) * K + k] : 0.0f;
  }
}

// M rows of a panel; sums begin as ``start``, or where ``start`` is null as C.
template <int M>
__attribute__((noinline)) void tile(const float* a, int64_t row, const float* b, const float* start, float* c,
                                    int64_t ldc, int K) {
  Tile<M> sums(start ? start : c, start ? 0 : ldc);
  sums.add(a, row, 1, b, K);
  sums.put(c, ldc);
}

// As ``tile``, of no more than ROWS rows.
void tiles(int rows, const float* a, int64_t row, const float* b, const float* start, float* c, int64_t ldc, int K) {
  constant<ROWS>(rows, [&](auto m) { tile<m>(a, row, b, start, c, ldc, K); });
}

// As ``tiles`` for a panel of which C has ``n`` columns.
void product(int rows, const float* a, int64_t row, const float* b, const float* start, float* c, int64_t ldc, int n,
             int K) {
  if (n == PANEL) return tiles(rows, a, row, b, start, c, ldc, K);
  float edge[ROWS * PANEL] = {0};
  for (int i = 0; !start && i < rows; i++) std::memcpy(edge + i * PANEL, c + i * ldc, n * sizeof(float));
  tiles(rows, a, row, b, start, edge, PANEL, K);
  for (int i = 0; i < rows; i++) std::memcpy(c + i * ldc, edge + i * PANEL, n * sizeof(float));
}

void multiply(const float* a, const float* b, const float* bias, float* c, int M, int N, int K, bool across,
              int threads) {
  int panels = (N + PANEL - 1) / PANEL, together = std::clamp(PACKED / (K * PANEL), 1, panels);
  int groups = (panels + together - 1) / together;
  int shares = threads > 1 ? std::clamp(4 * threads / groups, 1, (M + 8 * ROWS - 1) / (8 * ROWS)) : 1;
  int share = ((M + shares - 1) / shares + ROWS - 1) / ROWS * ROWS;
  int block = std::max(READ / K / ROWS, 4) * ROWS;
  int stretches = (K + STRETCH - 1) / STRETCH, stretch = (K + stretches - 1) / stretches;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::unique_ptr<float[]> packed(new float[size_t(K) * together * PANEL]);
    alignas(64) float start[PANEL];
#pragma omp for schedule(static)
    for (int task = 0; task < groups * shares; task++) {
      int first = task / shares * together * PANEL, columns = std::min(together * PANEL, panels * PANEL - first);
      int from = task % shares * share, to = std::min(from + share, M);
      if (from >= to) continue;
      pack(b, across, N, K, first, columns, packed.get());
      // The next columns come from memory while these are multiplied, some lines by a tile.
      const float *ahead = b + int64_t(first + columns) * K, *last = b + int64_t(std::min(N, first + 2 * columns)) * K;
      int64_t calls = int64_t((to - from + ROWS - 1) / ROWS) * (columns / PANEL) * stretches;
      int64_t lines = across && last > ahead ? ((last - ahead) / LINE + calls) / calls : 0;
      for (int m0 = from; m0 < to; m0 += block)
        for (int k0 = 0; k0 < K; k0 += stretch)
          for (int j = 0; j < columns; j += PANEL) {
            int wide = std::min(stretch, K - k0), n = std::min(PANEL, N - first - j), end = std::min(m0 + block, to);
            const float* panel = packed.get() + int64_t(j) * K + int64_t(k0) * PANEL;
            for (int i = 0; i < PANEL; i++) start[i] = bias && i < n ? bias[first + j + i] : 0.0f;
            for (int m = m0; m < end; m += ROWS) {
              for (int64_t line = 0; line < lines; line++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
              product(std::min(ROWS, end - m), a + int64_t(m) * K + k0, K, panel, k0 ? nullptr : start,
                      c + int64_t(m) * N + first + j, N, n, wide);
            }
          }
    }
  }
}

}  // namespace

extern "C" {

void linear_f32(const void* a, const void* b, const void* bias, void* c, int M, int N, int K, int across, int threads) {
  multiply((const float*)a, (const float*)b, (const float*)bias, (float*)c, M, N, K, across, threads);
}

}  // extern "C"
