// The selective scan, forward and backward.
//
// B samples, L tokens, D channels, N states. One job is one sample and LANES neighbouring channels, whose states stay
// in the cache through all tokens; the lanes fill vector registers. Jobs and their sums do not depend on the number of
// threads, so results are bit-identical for any number.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;

// e**x to about one unit in the last place; branch-free, so that loops over it become vector code. NaN stays NaN.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2**23: rounds to a whole number in the low bits
  const float whole = shifted - 12582912.0f;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  std::int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<std::int32_t>((static_cast<std::uint32_t>(bits) + 127u) << 23);
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline double exponential(double x) {
  return std::exp(x);
}

// LANES numbers from a row of D, zeros past its end.
template <typename T>
inline void load(T* to, const T* row, int count) {
  for (int i = 0; i < LANES; ++i) to[i] = i < count ? row[i] : T(0);
}

template <typename T>
inline void store(T* row, const T* from, int count) {
  for (int i = 0; i < count; ++i) row[i] = from[i];
}

// [count, N] of the caller to [N, LANES], and back.
template <typename T>
void load_states(T* to, const T* from, int count, long states) {
  for (long n = 0; n < states; ++n)
    for (int i = 0; i < LANES; ++i) to[n * LANES + i] = i < count ? from[i * states + n] : T(0);
}

template <typename T>
void store_states(T* to, const T* from, int count, long states) {
  for (long n = 0; n < states; ++n)
    for (int i = 0; i < count; ++i) to[i * states + n] = from[n * LANES + i];
}

template <typename T>
void scan(const T* x, const T* delta, const T* a, const T* b, const T* c, T* y, T* entries, long samples, long tokens,
          long channels, long states, long chunk, int threads) {
  const long blocks = (channels + LANES - 1) / LANES, chunks = (tokens + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long job = 0; job < samples * blocks; ++job) {
    const long sample = job / blocks, first = job % blocks * LANES;
    const int count = static_cast<int>(channels - first < LANES ? channels - first : LANES);
    std::vector<T> rates(states * LANES), h(states * LANES, T(0));
    load_states(rates.data(), a + first * states, count, states);
    for (long l = 0; l < tokens; ++l) {
      const long row = (sample * tokens + l) * channels + first, token = (sample * tokens + l) * states;
      if (l % chunk == 0)
        store_states(entries + ((sample * chunks + l / chunk) * channels + first) * states, h.data(), count, states);
      T step[LANES], input[LANES], sum[LANES] = {};
      load(step, delta + row, count);
      load(input, x + row, count);
      for (int i = 0; i < LANES; ++i) input[i] *= step[i];
      for (long n = 0; n < states; ++n) {
        const T into = b[token + n], out = c[token + n];
        T* state = h.data() + n * LANES;
        const T* rate = rates.data() + n * LANES;
        for (int i = 0; i < LANES; ++i) {
          state[i] = exponential(step[i] * rate[i]) * state[i] + input[i] * into;
          sum[i] += state[i] * out;
        }
      }
      store(y + row, sum, count);
    }
  }
}

// grad_a [B, D, N], grad_b and grad_c [blocks, B, L, N] are parts, which the caller adds up.
template <typename T>
void scan_backward(const T* grad_y, const T* x, const T* delta, const T* a, const T* b, const T* c, const T* entries,
                   T* grad_x, T* grad_delta, T* grad_a, T* grad_b, T* grad_c, long samples, long tokens, long channels,
                   long states, long chunk, int threads) {
  const long blocks = (channels + LANES - 1) / LANES, chunks = (tokens + chunk - 1) / chunk, size = states * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long job = 0; job < samples * blocks; ++job) {
    const long sample = job / blocks, block = job % blocks, first = block * LANES;
    const int count = static_cast<int>(channels - first < LANES ? channels - first : LANES);
    std::vector<T> rates(size), grad_rates(size, T(0)), carry(size, T(0)), h((chunk + 1) * size), decay(chunk * size);
    load_states(rates.data(), a + first * states, count, states);
    for (long part = chunks - 1; part >= 0; --part) {
      const long start = part * chunk, length = tokens - start < chunk ? tokens - start : chunk;
      load_states(h.data(), entries + ((sample * chunks + part) * channels + first) * states, count, states);
      for (long q = 0; q < length; ++q) {  // the states of this chunk once more
        const long row = (sample * tokens + start + q) * channels + first;
        const T* into = b + (sample * tokens + start + q) * states;
        T step[LANES], input[LANES];
        load(step, delta + row, count);
        load(input, x + row, count);
        for (int i = 0; i < LANES; ++i) input[i] *= step[i];
        for (long n = 0; n < states; ++n) {
          const T* before = h.data() + q * size + n * LANES;
          T *after = h.data() + (q + 1) * size + n * LANES, *e = decay.data() + q * size + n * LANES;
          for (int i = 0; i < LANES; ++i) {
            e[i] = exponential(step[i] * rates[n * LANES + i]);
            after[i] = e[i] * before[i] + input[i] * into[n];
          }
        }
      }
      for (long q = length - 1; q >= 0; --q) {
        const long row = (sample * tokens + start + q) * channels + first;
        const long token = (sample * tokens + start + q) * states;
        const long partial = ((block * samples + sample) * tokens + start + q) * states;
        T step[LANES], value[LANES], out[LANES], grad_input[LANES] = {}, grad_step[LANES] = {};
        load(step, delta + row, count);
        load(value, x + row, count);
        load(out, grad_y + row, count);
        for (long n = 0; n < states; ++n) {
          const T into = b[token + n], from = c[token + n];
          const T *before = h.data() + q * size + n * LANES, *after = before + size;
          const T *e = decay.data() + q * size + n * LANES, *rate = rates.data() + n * LANES;
          T *back = carry.data() + n * LANES, *grad_rate = grad_rates.data() + n * LANES;
          T to_b = 0, to_c = 0;
#pragma omp simd reduction(+ : to_b, to_c)
          for (int i = 0; i < LANES; ++i) {
            const T grad = back[i] + out[i] * from;
            to_b += grad * step[i] * value[i];
            to_c += out[i] * after[i];
            grad_input[i] += grad * into;
            const T exponent = grad * e[i] * before[i];
            grad_step[i] += exponent * rate[i];
            grad_rate[i] += exponent * step[i];
            back[i] = grad * e[i];
          }
          grad_b[partial + n] = to_b;
          grad_c[partial + n] = to_c;
        }
        for (int i = 0; i < LANES; ++i) {
          grad_step[i] += grad_input[i] * value[i];
          grad_input[i] *= step[i];
        }
        store(grad_x + row, grad_input, count);
        store(grad_delta + row, grad_step, count);
      }
    }
    store_states(grad_a + (sample * channels + first) * states, grad_rates.data(), count, states);
  }
}

}  // namespace

#define SCANS(T, suffix)                                                                                               \
  extern "C" void scan_##suffix(const T* x, const T* delta, const T* a, const T* b, const T* c, T* y, T* entries,      \
                                int samples, int tokens, int channels, int states, int chunk, int threads) {           \
    scan(x, delta, a, b, c, y, entries, samples, tokens, channels, states, chunk, threads);                            \
  }                                                                                                                    \
  extern "C" void scan_backward_##suffix(const T* grad_y, const T* x, const T* delta, const T* a, const T* b,          \
                                         const T* c, const T* entries, T* grad_x, T* grad_delta, T* grad_a, T* grad_b, \
                                         T* grad_c, int samples, int tokens, int channels, int states, int chunk,      \
                                         int threads) {                                                                \
    scan_backward(grad_y, x, delta, a, b, c, entries, grad_x, grad_delta, grad_a, grad_b, grad_c, samples, tokens,     \
                  channels, states, chunk, threads);                                                                   \
  }

SCANS(float, f32)
SCANS(double, f64)

extern "C" int lanes() {
  return LANES;
}
