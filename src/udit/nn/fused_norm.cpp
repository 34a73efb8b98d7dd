// LayerNorm without affine and its modulation, out = (x - mean) / deviation * (1 + scale) + shift, and gated sums,
// out = x + gate * y, each in one pass over memory, forward and backward.
//
// x, y and out are [B, N, D]; shift, scale and gate [B, D] floats, each with its step from row to row. A task is BAND rows of one sample. Every sum runs in
// an order that depends on shapes alone.

#include "vectors.h"

namespace {

constexpr int BAND = 64;
constexpr float EPS = 1e-6f;

struct Rows {
  const float* start;
  int step;
  const float* operator[](int b) const { return start + int64_t(b) * step; }
};

struct Band {
  int b, first, last;
};

struct Shape {
  int B, N, D;
  int bands() const { return (N + BAND - 1) / BAND; }
  int wide() const { return (D + LANES - 1) / LANES * LANES; }
  Band rows(int task) const {
    int first = task % bands() * BAND;
    return {task / bands(), first, first + BAND < N ? first + BAND : N};
  }
};

template <typename T>
inline void read(const T* from, int D, float* row) {
  for (int d = 0; d < D; d++) row[d] = widen(from[d]);
}

template <typename T>
inline void write(const float* row, int D, T* to) {
  for (int d = 0; d < D; d++) narrow(row[d], to + d);
}

template <typename T>
void norm(const T* x, Rows shift, Rows scale, T* out, float* moments, Shape s, int threads) {
  int wide = s.wide();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Floats row(wide), shifts(wide), scales(wide);
#pragma omp for schedule(static)
    for (int task = 0; task < s.B * s.bands(); task++) {
      auto [b, first, last] = s.rows(task);
      for (int d = 0; d < s.D; d++) {
        shifts.data()[d] = shift[b][d];
        scales.data()[d] = 1 + scale[b][d];
      }
      for (int n = first; n < last; n++) {
        int64_t place = int64_t(b) * s.N + n;
        float* r = row.data();
        read(x + place * s.D, s.D, r);
        for (int d = s.D; d < wide; d++) r[d] = 0;
        Vector sum{}, squares{};
        for (int d = 0; d < wide; d += LANES) sum += load(r + d);
        float mean = total(sum) / s.D;
        for (int d = s.D; d < wide; d++) r[d] = mean;
        for (int d = 0; d < wide; d += LANES) {
          Vector away = load(r + d) - mean;
          store(r + d, away);
          squares += away * away;
        }
        float inverse = 1 / std::sqrt(total(squares) / s.D + EPS);
        moments[2 * place] = mean;
        moments[2 * place + 1] = inverse;
        for (int d = 0; d < wide; d += LANES)
          store(r + d, load(r + d) * inverse * load(scales.data() + d) + load(shifts.data() + d));
        write(r, s.D, out + place * s.D);
      }
    }
  }
}

// sums is [2, B, bands, D]: of the shift's gradient, of the scale's.
template <typename T>
void norm_backward(const T* grad, const T* x, Rows scale, const float* moments, T* to, float* sums, Shape s,
                   int threads) {
  int wide = s.wide();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Floats g(wide), h(wide), scales(wide), shifted(wide), scaled(wide);
#pragma omp for schedule(static)
    for (int task = 0; task < s.B * s.bands(); task++) {
      auto [b, first, last] = s.rows(task);
      for (int d = 0; d < s.D; d++) scales.data()[d] = 1 + scale[b][d];
      std::memset(shifted.data(), 0, wide * sizeof(float));
      std::memset(scaled.data(), 0, wide * sizeof(float));
      for (int n = first; n < last; n++) {
        int64_t place = int64_t(b) * s.N + n;
        float mean = moments[2 * place], inverse = moments[2 * place + 1];
        read(grad + place * s.D, s.D, g.data());
        read(x + place * s.D, s.D, h.data());
        for (int d = s.D; d < wide; d++) h.data()[d] = mean;
        Vector sum{}, along{};
        for (int d = 0; d < wide; d += LANES) {
          Vector grads = load(g.data() + d), unit = (load(h.data() + d) - mean) * inverse;
          store(shifted.data() + d, load(shifted.data() + d) + grads);
          store(scaled.data() + d, load(scaled.data() + d) + grads * unit);
          grads *= load(scales.data() + d);
          sum += grads;
          along += grads * unit;
          store(g.data() + d, grads);
          store(h.data() + d, unit);
        }
        float level = total(sum) / s.D, slope = total(along) / s.D;
        for (int d = 0; d < wide; d += LANES)
          store(h.data() + d, (load(g.data() + d) - level - load(h.data() + d) * slope) * inverse);
        write(h.data(), s.D, to + place * s.D);
        for (int d = s.D; d < wide; d++) g.data()[d] = 0;
      }
      std::memcpy(sums + int64_t(task) * s.D, shifted.data(), s.D * sizeof(float));
      std::memcpy(sums + (int64_t(s.B) * s.bands() + task) * s.D, scaled.data(), s.D * sizeof(float));
    }
  }
}

template <typename T>
void gate(const T* x, Rows gates, const T* y, T* out, Shape s, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int task = 0; task < s.B * s.bands(); task++) {
    auto [b, first, last] = s.rows(task);
    const float* row = gates[b];
    for (int n = first; n < last; n++) {
      int64_t place = (int64_t(b) * s.N + n) * s.D;
      for (int d = 0; d < s.D; d++) narrow(widen(x[place + d]) + row[d] * widen(y[place + d]), out + place + d);
    }
  }
}

// to is y's gradient; sums is [B, bands, D], of the gate's.
template <typename T>
void gate_backward(const T* grad, Rows gates, const T* y, T* to, float* sums, Shape s, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int task = 0; task < s.B * s.bands(); task++) {
    auto [b, first, last] = s.rows(task);
    const float* row = gates[b];
    float* sum = sums + int64_t(task) * s.D;
    std::memset(sum, 0, s.D * sizeof(float));
    for (int n = first; n < last; n++) {
      int64_t place = (int64_t(b) * s.N + n) * s.D;
      for (int d = 0; d < s.D; d++) {
        float g = widen(grad[place + d]);
        sum[d] += g * widen(y[place + d]);
        narrow(g * row[d], to + place + d);
      }
    }
  }
}

}  // namespace

extern "C" {

#define NORM(NAME, T)                                                                                                  \
  void norm_##NAME(const void* x, const float* shift, int shifts, const float* scale, int scales, void* out,           \
                   void* moments, int B, int N, int D, int threads) {                                                  \
    norm((const T*)x, Rows{shift, shifts}, Rows{scale, scales}, (T*)out, (float*)moments, Shape{B, N, D}, threads);    \
  }                                                                                                                    \
  void norm_backward_##NAME(const void* grad, const void* x, const float* scale, int scales, const void* moments,      \
                            void* to, void* sums, int B, int N, int D, int threads) {                                  \
    norm_backward((const T*)grad, (const T*)x, Rows{scale, scales}, (const float*)moments, (T*)to, (float*)sums,       \
                  Shape{B, N, D}, threads);                                                                            \
  }                                                                                                                    \
  void gate_##NAME(const void* x, const float* gates, int step, const void* y, void* out, int B, int N, int D,         \
                   int threads) {                                                                                      \
    gate((const T*)x, Rows{gates, step}, (const T*)y, (T*)out, Shape{B, N, D}, threads);                               \
  }                                                                                                                    \
  void gate_backward_##NAME(const void* grad, const float* gates, int step, const void* y, void* to, void* sums, int B,\
                            int N, int D, int threads) {                                                               \
    gate_backward((const T*)grad, Rows{gates, step}, (const T*)y, (T*)to, (float*)sums, Shape{B, N, D}, threads);      \
  }

NORM(f32, float)
NORM(bf16, BFloat16)

}  // extern "C"
