// LayerNorm without affine parameters and its modulation, out = (x - mean) / deviation * (1 + scale) + shift, in one
// pass over memory, forward and backward.
//
// x and out are [B, N, D]; shift and scale [B, D] floats. Every sum runs in an order that depends on shapes alone.

#include "rows.h"

namespace {

constexpr float EPS = 1e-6f;

template <typename T>
inline void read(const T* from, int D, float* row) {
  for (int d = 0; d < D; d++) row[d] = widen(from[d]);
}

template <typename T>
inline void write(const float* row, int D, T* to) {
  for (int d = 0; d < D; d++) narrow(row[d], to + d);
}

template <typename T>
void norm(const T* x, Factors shift, Factors scale, T* out, float* moments, Bands s, int threads) {
  int wide = s.wide();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Floats row(wide), shifts(wide), scales(wide);
#pragma omp for schedule(static)
    for (int task = 0; task < s.tasks(); task++) {
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
void norm_backward(const T* grad, const T* x, Factors scale, const float* moments, T* to, float* sums, Bands s,
                   int threads) {
  int wide = s.wide();
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Floats g(wide), h(wide), scales(wide), shifted(wide), scaled(wide);
#pragma omp for schedule(static)
    for (int task = 0; task < s.tasks(); task++) {
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
      std::memcpy(sums + (int64_t(s.tasks()) + task) * s.D, scaled.data(), s.D * sizeof(float));
    }
  }
}

}  // namespace

extern "C" {

#define NORM(NAME, T)                                                                                               \
  void norm_##NAME(const void* x, const float* shift, int shifts, const float* scale, int scales, void* out,        \
                   void* moments, int B, int N, int D, int threads) {                                               \
    norm((const T*)x, Factors{shift, shifts}, Factors{scale, scales}, (T*)out, (float*)moments, Bands{B, N, D},     \
         threads);                                                                                                  \
  }                                                                                                                 \
  void norm_backward_##NAME(const void* grad, const void* x, const float* scale, int scales, const void* moments,   \
                            void* to, void* sums, int B, int N, int D, int threads) {                               \
    norm_backward((const T*)grad, (const T*)x, Factors{scale, scales}, (const float*)moments, (T*)to, (float*)sums, \
                  Bands{B, N, D}, threads);                                                                         \
  }

NORM(f32, float)
NORM(bf16, BFloat16)

int band() {
  return BAND;
}

}  // extern "C"
