// Queries, keys and values of cosine attention in one pass: sub-grids, rotary positions, norms and temperatures.
//
// qkv is [B, H, W, 3, h, R]; q, k and v are [B, f, f, N, h, R], N = H / f * W / f. A task is one row of a map. Every sum
// runs in an order that depends on shapes alone.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct BFloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = nan ? 0x7fc0 : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
}

// R is a multiple of 4, with or without positions.
inline float dot(const float* a, const float* b, int R) {
  float sums[8] = {0};
  int r = 0;
  for (; r + 8 <= R; r += 8)
    for (int i = 0; i < 8; i++) sums[i] += a[r + i] * b[r + i];
  float total = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
  for (; r < R; r++) total += a[r] * b[r];
  return total;
}

// (a, b) -> (a cos - b sin, b cos + a sin); the table's sines are signed, so that the way back takes them off.
inline void turn(const float* x, const float* cosine, const float* sine, float sign, int R, float* out) {
  for (int m = 0; m < R; m += 2) {
    out[m] = x[m] * cosine[m] + sign * x[m + 1] * sine[m];
    out[m + 1] = x[m + 1] * cosine[m + 1] + sign * x[m] * sine[m + 1];
  }
}

// The larger of the norm and 1e-12, and whether it is the norm; scaled where squares leave the range of float.
inline float length(const float* x, int R, bool* above) {
  float square = dot(x, x, R), out;
  if (square > 1e-30f && square < 1e37f) {
    out = std::sqrt(square);
  } else {
    double sum = 0;
    for (int r = 0; r < R; r++) sum += double(x[r]) * x[r];
    out = float(std::sqrt(sum));
  }
  *above = !(out <= 1e-12f);
  return *above ? out : 1e-12f;
}

struct Shape {
  int B, H, W, heads, R, f;
  int64_t out(int b, int y, int x) const {  // pixel's place in [B, f, f, N]
    int h = H / f, w = W / f;
    return ((int64_t(b) * f + y % f) * f + x % f) * h * w + (y / f) * w + x / f;
  }
  int token(int y, int x) const { return (y / f) * (W / f) + x / f; }
};

template <typename T>
void forward(const T* qkv, const float* temperature, const float* table, T* q, T* k, T* v, Shape s, int threads) {
  int D = s.heads * s.R, N = s.H / s.f * (s.W / s.f);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> wide(s.R), turned(s.R);
#pragma omp for schedule(static)
    for (int row = 0; row < s.B * s.H; row++) {
      int b = row / s.H, y = row % s.H;
      for (int x = 0; x < s.W; x++) {
        const T* from = qkv + (int64_t(row) * s.W + x) * 3 * D;
        int64_t to = s.out(b, y, x) * D;
        const float* cosine = table + int64_t(s.token(y, x)) * s.R;
        std::memcpy(v + to, from + 2 * D, sizeof(T) * D);
        for (int part = 0; part < 2; part++)
          for (int head = 0; head < s.heads; head++) {
            for (int r = 0; r < s.R; r++) wide[r] = widen(from[part * D + head * s.R + r]);
            float* now = wide.data();
            if (table) {
              turn(wide.data(), cosine, cosine + int64_t(N) * s.R, 1, s.R, turned.data());
              now = turned.data();
            }
            bool above;
            float scale = (part ? 1.0f : temperature[head]) / length(now, s.R, &above);
            T* out = (part ? k : q) + to + head * s.R;
            for (int r = 0; r < s.R; r++) narrow(now[r] * scale, out + r);
          }
      }
    }
  }
}

// gradients is [B * H, h]: the temperatures' gradient, one sum a row of a map.
template <typename T>
void backward(const T* gq, const T* gk, const T* gv, const T* qkv, const float* temperature, const float* table, T* out,
              float* gradients, Shape s, int threads) {
  int D = s.heads * s.R, N = s.H / s.f * (s.W / s.f);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> wide(s.R), turned(s.R), grad(s.R);
#pragma omp for schedule(static)
    for (int row = 0; row < s.B * s.H; row++) {
      int b = row / s.H, y = row % s.H;
      float* sums = gradients + int64_t(row) * s.heads;
      for (int head = 0; head < s.heads; head++) sums[head] = 0;
      for (int x = 0; x < s.W; x++) {
        int64_t place = (int64_t(row) * s.W + x) * 3 * D, from = s.out(b, y, x) * D;
        const float* cosine = table + int64_t(s.token(y, x)) * s.R;
        const float* sine = cosine + int64_t(N) * s.R;
        std::memcpy(out + place + 2 * D, gv + from, sizeof(T) * D);
        for (int part = 0; part < 2; part++)
          for (int head = 0; head < s.heads; head++) {
            const T* g = (part ? gk : gq) + from + head * s.R;
            for (int r = 0; r < s.R; r++) {
              wide[r] = widen(qkv[place + part * D + head * s.R + r]);
              grad[r] = widen(g[r]);
            }
            float* now = wide.data();
            if (table) {
              turn(wide.data(), cosine, sine, 1, s.R, turned.data());
              now = turned.data();
            }
            bool above;
            float size = length(now, s.R, &above), along = dot(grad.data(), now, s.R) / size;
            if (part == 0) sums[head] += along;
            float scale = (part ? 1.0f : temperature[head]) / size, back = above ? along / size : 0.0f;
            for (int r = 0; r < s.R; r++) grad[r] = scale * (grad[r] - now[r] * back);
            float* last = grad.data();
            if (table) {
              turn(grad.data(), cosine, sine, -1, s.R, wide.data());
              last = wide.data();
            }
            T* to = out + place + part * D + head * s.R;
            for (int r = 0; r < s.R; r++) narrow(last[r], to + r);
          }
      }
    }
  }
}

}  // namespace

extern "C" {

#define COSINE(NAME, T)                                                                                                \
  void cosine_##NAME(const void* qkv, const void* temperature, const void* table, void* q, void* k, void* v, int B,    \
                     int H, int W, int heads, int R, int f, int threads) {                                             \
    forward((const T*)qkv, (const float*)temperature, (const float*)table, (T*)q, (T*)k, (T*)v,                        \
            Shape{B, H, W, heads, R, f}, threads);                                                                     \
  }                                                                                                                    \
  void cosine_backward_##NAME(const void* gq, const void* gk, const void* gv, const void* qkv,                         \
                              const void* temperature, const void* table, void* out, void* gradients, int B, int H,    \
                              int W, int heads, int R, int f, int threads) {                                           \
    backward((const T*)gq, (const T*)gk, (const T*)gv, (const T*)qkv, (const float*)temperature, (const float*)table,  \
             (T*)out, (float*)gradients, Shape{B, H, W, heads, R, f}, threads);                                        \
  }

COSINE(f32, float)
COSINE(bf16, BFloat16)

}  // extern "C"
