// Depthwise convolutions of maps [B, H, W, C], stride 1, odd square kernels, zero padding of half a side.
//
// A task is one image, one band of rows and one line of channels. It copies what it reads into a padded scratch
// of floats, so that the inner loops know no borders, no strides of C and no element types. Every sum runs in an order
// that depends on shapes alone: results are the same bits with any number of threads.

#include "vectors.h"

namespace {

constexpr int LINE = 32;  // channels of a task: two cache lines of floats

// n <= LINE channels of one pixel, the rest of the line zero.
template <typename T>
inline void read(const T* from, int n, float* line) {
  if (n == LINE) {
    for (int i = 0; i < LINE; i++) line[i] = widen(from[i]);
  } else {
    for (int i = 0; i < LINE; i++) line[i] = i < n ? widen(from[i]) : 0.0f;
  }
}

template <typename T>
inline void write(const float* line, int n, T* to) {
  if (n == LINE) {
    for (int i = 0; i < LINE; i++) narrow(line[i], to + i);
  } else {
    for (int i = 0; i < n; i++) narrow(line[i], to + i);
  }
}

// Rows [y0 - pad, y0 + rows + pad) of a map, zero outside it, into lines [rows + 2 pad, wide].
template <typename T>
void pad_band(const T* map, int H, int W, int64_t C, int n, int y0, int rows, int pad, int wide, float* out) {
  for (int r = 0; r < rows + 2 * pad; r++) {
    int y = y0 - pad + r;
    float* row = out + int64_t(r) * wide * LINE;
    if (y < 0 || y >= H) {
      std::memset(row, 0, sizeof(float) * wide * LINE);
      continue;
    }
    std::memset(row, 0, sizeof(float) * pad * LINE);
    const T* from = map + int64_t(y) * W * C;
    for (int x = 0; x < W; x++) read(from + x * C, n, row + (pad + x) * LINE);
    std::memset(row + (pad + W) * LINE, 0, sizeof(float) * (wide - pad - W) * LINE);
  }
}

// The kernel [C, S, S] of some channels as lines [S * S]; turned by half a circle for the gradient of the input.
void read_kernel(const float* weight, int64_t c0, int n, int S, bool turned, float* out) {
  int area = S * S;
  for (int k = 0; k < area; k++)
    for (int i = 0; i < LINE; i++) out[k * LINE + i] = i < n ? weight[(c0 + i) * area + (turned ? area - 1 - k : k)] : 0.0f;
}

// TY rows of TX pixels of LANES channels, summed in registers.
template <int S, int TX, int TY>
__attribute__((noinline)) void tile(const float* in, int wide, const float* kernel, const float* start, float* out) {
  Vector sum[TY][TX];
  for (int j = 0; j < TY; j++)
    for (int i = 0; i < TX; i++) sum[j][i] = load(start);
#pragma GCC unroll 8
  for (int r = 0; r < S + TY - 1; r++) {
    const float* row = in + int64_t(r) * wide * LINE;
#pragma GCC unroll 16
    for (int p = 0; p < TX + S - 1; p++) {
      Vector value = load(row + p * LINE);
#pragma GCC unroll 2
      for (int j = 0; j < TY; j++) {
        if (r - j < 0 || r - j >= S) continue;
#pragma GCC unroll 8
        for (int k = 0; k < S; k++)
          if (p - k >= 0 && p - k < TX) sum[j][p - k] += value * load(kernel + ((r - j) * S + k) * LINE);
      }
    }
  }
  for (int j = 0; j < TY; j++)
    for (int i = 0; i < TX; i++) store(out + (j * TX + i) * LINE, sum[j][i]);
}

template <typename T, int S, int TX, int TY>
void filter_band(const float* in, int wide, int rows, int W, const float* kernel, const float* start, T* out, int64_t C,
                 int n) {
  alignas(64) float lines[TY * TX * LINE];
  for (int y = 0; y < rows; y += TY)
    for (int x = 0; x < W; x += TX) {
      for (int part = 0; part < LINE; part += LANES)
        tile<S, TX, TY>(in + (int64_t(y) * wide + x) * LINE + part, wide, kernel + part, start + part, lines + part);
      for (int j = 0; j < TY && y + j < rows; j++)
        for (int i = 0; i < TX && x + i < W; i++)
          write(lines + (j * TX + i) * LINE, n, out + (int64_t(y + j) * W + x + i) * C);
    }
}

struct Shape {
  int B, H, W;
  int64_t C;
  int band, bands, blocks, wide;
  Shape(int b, int h, int w, int c, int S) : B(b), H(h), W(w), C(c) {
    wide = (W + 7) / 8 * 8 + S - 1;
    band = 8;
    band = band > H ? H : band;
    bands = (H + band - 1) / band;
    blocks = int((C + LINE - 1) / LINE);
  }
  int channels(int block) const { return int(C - block * LINE < LINE ? C - block * LINE : LINE); }
  int rows(int index) const { return H - index * band < band ? H - index * band : band; }
};

template <typename T, int S>
void filter(const T* x, const float* weight, const float* bias, bool turned, T* out, Shape s, int threads) {
  int tasks = s.B * s.bands * s.blocks;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Floats scratch(size_t(s.band + S) * s.wide * LINE), kernel(S * S * LINE);
    alignas(64) float start[LINE] = {0};
#pragma omp for schedule(static)
    for (int task = 0; task < tasks; task++) {
      int block = task % s.blocks, band = task / s.blocks % s.bands, b = task / s.blocks / s.bands;
      int n = s.channels(block), rows = s.rows(band), y0 = band * s.band;
      int64_t c0 = int64_t(block) * LINE;
      read_kernel(weight, c0, n, S, turned, kernel.data());
      for (int i = 0; i < LINE; i++) start[i] = bias && i < n ? bias[c0 + i] : 0.0f;
      pad_band(x + int64_t(b) * s.H * s.W * s.C + c0, s.H, s.W, s.C, n, y0, rows, S / 2, s.wide, scratch.data());
      T* to = out + (int64_t(b) * s.H + y0) * s.W * s.C + c0;
      if (s.W % 8 == 0)
        filter_band<T, S, 8, 1>(scratch.data(), s.wide, rows, s.W, kernel.data(), start, to, s.C, n);
      else
        filter_band<T, S, 4, 2>(scratch.data(), s.wide, rows, s.W, kernel.data(), start, to, s.C, n);
    }
  }
}

// Adds, over a row, g[x] * in[x + k] to sums[k], for ROWS rows of the kernel at once.
template <int S, int ROWS>
__attribute__((noinline)) void correlate(const float* g, const float* in, int wide, int W, float* sums) {
  for (int part = 0; part < LINE; part += LANES) {
    Vector sum[ROWS][S];
    for (int j = 0; j < ROWS; j++)
      for (int k = 0; k < S; k++) sum[j][k] = load(sums + (j * S + k) * LINE + part);
    int x = 0;
    for (; x + 4 <= W; x += 4) {
      Vector grad[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) grad[i] = load(g + (x + i) * LINE + part);
#pragma GCC unroll 2
      for (int j = 0; j < ROWS; j++)
#pragma GCC unroll 12
        for (int p = 0; p < 4 + S - 1; p++) {
          Vector value = load(in + (int64_t(j) * wide + x + p) * LINE + part);
#pragma GCC unroll 8
          for (int k = 0; k < S; k++)
            if (p - k >= 0 && p - k < 4) sum[j][k] += grad[p - k] * value;
        }
    }
    for (; x < W; x++)
      for (int j = 0; j < ROWS; j++)
        for (int k = 0; k < S; k++)
          sum[j][k] += load(g + x * LINE + part) * load(in + (int64_t(j) * wide + x + k) * LINE + part);
    for (int j = 0; j < ROWS; j++)
      for (int k = 0; k < S; k++) store(sums + (j * S + k) * LINE + part, sum[j][k]);
  }
}

// Gradient of kernel and bias, one sum an image: [B, C, S * S] and [B, C].
template <typename T, int S>
void weigh(const T* x, const T* g, float* weight, float* bias, Shape s, int threads) {
  int tasks = s.B * s.blocks;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Floats scratch(size_t(s.band + S) * s.wide * LINE), grad(size_t(s.band) * s.W * LINE), sums(S * S * LINE);
#pragma omp for schedule(static)
    for (int task = 0; task < tasks; task++) {
      int block = task % s.blocks, b = task / s.blocks, n = s.channels(block);
      int64_t c0 = int64_t(block) * LINE, image = int64_t(b) * s.H * s.W * s.C + c0;
      alignas(64) float total[LINE] = {0};
      std::memset(sums.data(), 0, sizeof(float) * S * S * LINE);
      for (int band = 0; band < s.bands; band++) {
        int rows = s.rows(band), y0 = band * s.band;
        pad_band(x + image, s.H, s.W, s.C, n, y0, rows, S / 2, s.wide, scratch.data());
        pad_band(g + image, s.H, s.W, s.C, n, y0, rows, 0, s.W, grad.data());
        for (int y = 0; y < rows; y++) {
          const float* row = grad.data() + int64_t(y) * s.W * LINE;
          for (int p = 0; p < s.W; p++)
            for (int i = 0; i < LINE; i++) total[i] += row[p * LINE + i];
          const float* in = scratch.data() + int64_t(y) * s.wide * LINE;
          int ky = 0;
          for (; ky + 2 <= S; ky += 2)
            correlate<S, 2>(row, in + int64_t(ky) * s.wide * LINE, s.wide, s.W, sums.data() + ky * S * LINE);
          correlate<S, 1>(row, in + int64_t(ky) * s.wide * LINE, s.wide, s.W, sums.data() + ky * S * LINE);
        }
      }
      for (int i = 0; i < n; i++) {
        bias[int64_t(b) * s.C + c0 + i] = total[i];
        for (int k = 0; k < S * S; k++) weight[(int64_t(b) * s.C + c0 + i) * S * S + k] = sums.data()[k * LINE + i];
      }
    }
  }
}

template <typename T>
void filter_any(const T* x, const float* w, const float* b, bool turned, T* out, int B, int H, int W, int C, int S, int threads) {
  Shape s(B, H, W, C, S);
  if (S == 3) filter<T, 3>(x, w, b, turned, out, s, threads);
  if (S == 5) filter<T, 5>(x, w, b, turned, out, s, threads);
}

template <typename T>
void weigh_any(const T* x, const T* g, float* w, float* b, int B, int H, int W, int C, int S, int threads) {
  Shape s(B, H, W, C, S);
  if (S == 3) weigh<T, 3>(x, g, w, b, s, threads);
  if (S == 5) weigh<T, 5>(x, g, w, b, s, threads);
}

}  // namespace

extern "C" {

void depthwise_f32(const void* x, const void* w, const void* b, int turned, void* out, int B, int H, int W, int C, int S, int threads) {
  filter_any((const float*)x, (const float*)w, (const float*)b, turned, (float*)out, B, H, W, C, S, threads);
}

void depthwise_bf16(const void* x, const void* w, const void* b, int turned, void* out, int B, int H, int W, int C, int S, int threads) {
  filter_any((const BFloat16*)x, (const float*)w, (const float*)b, turned, (BFloat16*)out, B, H, W, C, S, threads);
}

void depthwise_weights_f32(const void* x, const void* g, void* w, void* b, int B, int H, int W, int C, int S, int threads) {
  weigh_any((const float*)x, (const float*)g, (float*)w, (float*)b, B, H, W, C, S, threads);
}

void depthwise_weights_bf16(const void* x, const void* g, void* w, void* b, int B, int H, int W, int C, int S, int threads) {
  weigh_any((const BFloat16*)x, (const BFloat16*)g, (float*)w, (float*)b, B, H, W, C, S, threads);
}

}  // extern "C"
