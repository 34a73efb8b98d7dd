// Depthwise convolutions of maps [B, H, W, C], stride 1, odd square kernels, zero padding of half a side, behind a GELU
// where one is asked for.
//
// A task is one image, one band of rows and one line of channels. It copies what it reads into a padded scratch
// of floats, so that the inner loops know no borders, no strides of C and no element types. Every sum runs in an order
// that depends on shapes alone: results are the same bits with any number of threads.

#include "vectors.h"

namespace {

constexpr int LINE = 32;  // channels of a task: two cache lines of floats

template <int N>
inline Vector polynomial(const float (&c)[N], Vector z) {
  Vector sum = Vector{} + c[N - 1];
  for (int i = N - 2; i >= 0; i--) sum = sum * z + c[i];
  return sum;
}

// Quotients of polynomials in x squared, fitted for the least largest error; within 3e-7 in float arithmetic.

// x times the normal distribution's share below x.
inline Vector gelu(Vector x) {
  constexpr float P[] = {3.989422346e-01f, 3.385277966e-02f, 4.677269160e-03f,
                         1.688270709e-04f, 6.352131206e-06f, 2.274932595e-08f};
  constexpr float Q[] = {1.000000000e+00f, 2.515222530e-01f, 2.864594871e-02f,
                         1.884452714e-03f, 7.364796998e-05f, 1.197503766e-06f};
  Vector c = x < -5.5f ? Vector{} - 5.5f : x;
  c = c > 5.5f ? Vector{} + 5.5f : c;
  Vector z = c * c;
  return x * (c * polynomial(P, z) / polynomial(Q, z) + 0.5f);
}

// The derivative of that.
inline Vector gelu_slope(Vector x) {
  constexpr float P[] = {7.978845312e-01f, -2.237112488e-02f, 1.385733508e-02f, 2.027336500e-04f,
                         3.409190389e-05f, 9.225365967e-07f,  1.704642699e-08f};
  constexpr float Q[] = {1.000000000e+00f, 3.052949146e-01f, 4.413364044e-02f, 3.971514923e-03f,
                         2.453247644e-04f, 1.030776293e-05f, 3.389806969e-07f, 1.314772535e-09f};
  x = x < -6.0f ? Vector{} - 6.0f : x;
  x = x > 6.0f ? Vector{} + 6.0f : x;
  Vector z = x * x;
  return x * polynomial(P, z) / polynomial(Q, z) + 0.5f;
}

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

// Rows [y0 - pad, y0 + rows + pad) of a map, or of its GELU, zero outside it, into lines [rows + 2 pad, wide].
template <typename T>
void pad_band(const T* map, int H, int W, int64_t C, int n, int y0, int rows, int pad, int wide, bool active,
              float* out) {
  for (int r = 0; r < rows + 2 * pad; r++) {
    int y = y0 - pad + r;
    float* row = out + int64_t(r) * wide * LINE;
    if (y < 0 || y >= H) {
      std::memset(row, 0, sizeof(float) * wide * LINE);
      continue;
    }
    std::memset(row, 0, sizeof(float) * pad * LINE);
    const T* from = map + int64_t(y) * W * C;
    for (int x = 0; x < W; x++) {
      float* line = row + (pad + x) * LINE;
      read(from + x * C, n, line);
      for (int i = 0; active && i < LINE; i += LANES) store(line + i, gelu(load(line + i)));
    }
    std::memset(row + (pad + W) * LINE, 0, sizeof(float) * (wide - pad - W) * LINE);
  }
}

// The kernel [C, S, S] of some channels as lines [S * S]; turned by half a circle for the gradient of the input.
void read_kernel(const float* weight, int64_t c0, int n, int S, bool turned, float* out) {
  int area = S * S;
  for (int k = 0; k < area; k++)
    for (int i = 0; i < LINE; i++)
      out[k * LINE + i] = i < n ? weight[(c0 + i) * area + (turned ? area - 1 - k : k)] : 0.0f;
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

// ``sloped`` lies as ``out``: where it is given, the result is multiplied by the GELU's slope there.
template <typename T, int S, int TX, int TY>
void filter_band(const float* in, int wide, int rows, int W, const float* kernel, const float* start, const T* sloped,
                 T* out, int64_t C, int n) {
  alignas(64) float lines[TY * TX * LINE];
  for (int y = 0; y < rows; y += TY)
    for (int x = 0; x < W; x += TX) {
      for (int part = 0; part < LINE; part += LANES)
        tile<S, TX, TY>(in + (int64_t(y) * wide + x) * LINE + part, wide, kernel + part, start + part, lines + part);
      for (int j = 0; j < TY && y + j < rows; j++)
        for (int i = 0; i < TX && x + i < W; i++) {
          float *line = lines + (j * TX + i) * LINE, given[LINE];
          int64_t place = (int64_t(y + j) * W + x + i) * C;
          if (sloped) {
            read(sloped + place, n, given);
            for (int k = 0; k < LINE; k += LANES) store(line + k, load(line + k) * gelu_slope(load(given + k)));
          }
          write(line, n, out + place);
        }
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
void filter(const T* x, const float* weight, const float* bias, bool turned, bool active, const T* sloped, T* out,
            Shape s, int threads) {
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
      pad_band(x + int64_t(b) * s.H * s.W * s.C + c0, s.H, s.W, s.C, n, y0, rows, S / 2, s.wide, active,
               scratch.data());
      int64_t place = (int64_t(b) * s.H + y0) * s.W * s.C + c0;
      auto band_filter = s.W % 8 == 0 ? filter_band<T, S, 8, 1> : filter_band<T, S, 4, 2>;
      band_filter(scratch.data(), s.wide, rows, s.W, kernel.data(), start, sloped ? sloped + place : nullptr,
                  out + place, s.C, n);
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
void weigh(const T* x, const T* g, bool active, float* weight, float* bias, Shape s, int threads) {
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
        pad_band(x + image, s.H, s.W, s.C, n, y0, rows, S / 2, s.wide, active, scratch.data());
        pad_band(g + image, s.H, s.W, s.C, n, y0, rows, 0, s.W, false, grad.data());
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
void filter_any(const T* x, const float* w, const float* b, bool turned, bool active, const T* sloped, T* out, int B,
                int H, int W, int C, int S, int threads) {
  Shape s(B, H, W, C, S);
  if (S == 3) filter<T, 3>(x, w, b, turned, active, sloped, out, s, threads);
  if (S == 5) filter<T, 5>(x, w, b, turned, active, sloped, out, s, threads);
}

template <typename T>
void weigh_any(const T* x, const T* g, bool active, float* w, float* b, int B, int H, int W, int C, int S,
               int threads) {
  Shape s(B, H, W, C, S);
  if (S == 3) weigh<T, 3>(x, g, active, w, b, s, threads);
  if (S == 5) weigh<T, 5>(x, g, active, w, b, s, threads);
}

}  // namespace

extern "C" {

#define DEPTHWISE(NAME, T)                                                                                           \
  void depthwise_##NAME(const void* x, const void* w, const void* b, int turned, int active, const void* sloped,     \
                        void* out, int B, int H, int W, int C, int S, int threads) {                                 \
    filter_any((const T*)x, (const float*)w, (const float*)b, turned, active, (const T*)sloped, (T*)out, B, H, W, C, \
               S, threads);                                                                                          \
  }                                                                                                                  \
  void depthwise_weights_##NAME(const void* x, const void* g, int active, void* w, void* b, int B, int H, int W,     \
                                int C, int S, int threads) {                                                         \
    weigh_any((const T*)x, (const T*)g, active, (float*)w, (float*)b, B, H, W, C, S, threads);                       \
  }

DEPTHWISE(f32, float)
DEPTHWISE(bf16, BFloat16)

}  // extern "C"
