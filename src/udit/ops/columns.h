// Rows of channels to columns and back, so that tokens lie along a vector's lanes: [R, tokens], a channel's tokens
// ``line`` floats from the next one's, channels up to a whole vector of them.

#pragma once

#include <utility>

#include "vectors.h"

namespace {

constexpr int AHEAD = 2 * LANES;  // tokens that are fetched before their turn

inline int up(int n, int step) {
  return (n + step - 1) / step * step;
}

// The rows of tokens n, n + 1, ...: their channels of one head.
template <typename T>
struct Rows {
  T* first;
  const int64_t* pixels;
  int64_t step;
  T* operator[](int n) const { return first + pixels[n] * step; }
  Rows from(int n) const { return {first, pixels + n, step}; }
};

// Lanes of a and b in turn, BIT of each at a time: every other such group, beginning with lane FIRST.
template <int BIT, int FIRST, int... J>
inline Vector in_turn(Vector a, Vector b, std::integer_sequence<int, J...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (FIRST + (J & BIT ? LANES + J - BIT : J))...);
#else
  return __builtin_shuffle(a, b, Integers{(FIRST + (J & BIT ? LANES + J - BIT : J))...});
#endif
}

// Transposes LANES x LANES, bit by bit of a lane's number.
template <int BIT = 1>
inline void exchange(Vector (&x)[LANES]) {
  if constexpr (BIT < LANES) {
    constexpr auto all = std::make_integer_sequence<int, LANES>();
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & BIT)) {
        Vector a = x[i], b = x[i + BIT];
        x[i] = in_turn<BIT, 0>(a, b, all);
        x[i + BIT] = in_turn<BIT, BIT>(a, b, all);
      }
    exchange<2 * BIT>(x);
  }
}

typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

inline Vector load(const BFloat16* p) {
  Halves bits;
  std::memcpy(&bits, p, sizeof bits);
  Words wide = __builtin_convertvector(bits, Words) << 16;
  Vector out;
  std::memcpy(&out, &wide, sizeof out);
  return out;
}

inline void store(BFloat16* p, Vector x) {  // as narrow
  Words bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : Words{} + 0x7fc0u;
  Halves out = __builtin_convertvector(bits, Halves);
  std::memcpy(p, &out, sizeof out);
}

// Pairs of channels (a, b) -> (a cos - b sin, b cos + a sin), or back; a's sine in the table has its sign.
template <int SIGN>
inline void turn(Vector (&x)[LANES], const float* cosine, const float* sine, int64_t line) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i += 2) {
    Vector a = x[i], b = x[i + 1];
    Vector c = b * load(sine), d = a * load(sine + line);
    x[i] = a * load(cosine) + (SIGN > 0 ? c : -c);
    x[i + 1] = b * load(cosine + line) + (SIGN > 0 ? d : -d);
    cosine += 2 * line;
    sine += 2 * line;
  }
}

// LANES rows to columns, turned if there are ``turns``, all channels' cosines and then their sines; returns the sums of
// squares.
template <typename T>
__attribute__((noinline)) Vector gather(Rows<const T> rows, int R, int64_t line, const float* turns, float* columns) {
  Vector squares[2] = {};
  for (int r = 0; r < R; r += LANES) {
    Vector x[LANES];
    if (r + LANES <= R) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) x[i] = load(rows[i] + r);
      for (int i = 0; i < LANES; i++) __builtin_prefetch(rows[AHEAD + i] + r);
    } else {
      float part[LANES * LANES] = {};
      for (int i = 0; i < LANES; i++)
        for (int j = 0; j < R - r; j++) part[i * LANES + j] = widen(rows[i][r + j]);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) x[i] = load(part + i * LANES);
    }
    exchange(x);
    if (turns) {
      turn<1>(x, turns, turns + up(R, LANES) * line, line);
      turns += LANES * line;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
      squares[i & 1] += x[i] * x[i];
      store(columns, x[i]);
      columns += line;
    }
  }
  return squares[0] + squares[1];
}

// The way back, turned back, of scale times (columns less, if that is there, ``back`` times ``from``); no more than
// ``count`` rows.
template <typename T>
__attribute__((noinline)) void scatter(const float* columns, int R, int64_t line, const float* turns, Vector scale,
                                       const float* from, Vector back, int count, Rows<T> rows) {
  for (int r = 0; r < R; r += LANES) {
    Vector x[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = load(columns + i * line);
    columns += LANES * line;
    if (from) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) x[i] -= load(from + i * line) * back;
      from += LANES * line;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] *= scale;
    if (turns) {
      turn<-1>(x, turns, turns + up(R, LANES) * line, line);
      turns += LANES * line;
    }
    exchange(x);
    if (r + LANES <= R) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        if (i < count) store(rows[i] + r, x[i]);
    } else {
      float part[LANES * LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) store(part + i * LANES, x[i]);
      for (int i = 0; i < count; i++)
        for (int j = 0; j < R - r; j++) narrow(part[i * LANES + j], rows[i] + r + j);
    }
  }
}

inline Vector dot(const float* a, const float* b, int R, int64_t line) {
  Vector sum{}, odd{};
  int r = 0;
  for (; r + 2 <= R; r += 2, a += 2 * line, b += 2 * line) {
    sum += load(a) * load(b);
    odd += load(a + line) * load(b + line);
  }
  return r < R ? sum + odd + load(a) * load(b) : sum + odd;
}

}  // namespace
