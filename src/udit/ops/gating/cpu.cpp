// Gated sums, out = x + gate * y, in one pass over memory, forward and backward.
//
// x, y and out are [B, N, D], gate [B, D] floats. Every sum runs in an order that depends on shapes alone.

#include "rows.h"

namespace {

template <typename T>
void gate(const T* x, Factors gates, const T* y, T* out, Bands s, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int task = 0; task < s.tasks(); task++) {
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
void gate_backward(const T* grad, Factors gates, const T* y, T* to, float* sums, Bands s, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int task = 0; task < s.tasks(); task++) {
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

#define GATE(NAME, T)                                                                                                \
  void gate_##NAME(const void* x, const float* gates, int step, const void* y, void* out, int B, int N, int D,       \
                   int threads) {                                                                                    \
    gate((const T*)x, Factors{gates, step}, (const T*)y, (T*)out, Bands{B, N, D}, threads);                          \
  }                                                                                                                  \
  void gate_backward_##NAME(const void* grad, const float* gates, int step, const void* y, void* to, void* sums,     \
                            int B, int N, int D, int threads) {                                                      \
    gate_backward((const T*)grad, Factors{gates, step}, (const T*)y, (T*)to, (float*)sums, Bands{B, N, D}, threads); \
  }

GATE(f32, float)
GATE(bf16, BFloat16)

int band() {
  return BAND;
}

}  // extern "C"
