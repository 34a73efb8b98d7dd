// Attention within the interleaved sub-grids of a map, from queries, keys and values to each head's output.
//
// qkv is [B, H, W, 3, h, R], out [B, H, W, h, R]; the N = H / f * W / f pixels (i * f + a, j * f + e) of a sub-grid
// attend to each other. A task is one head of one sub-grid. It works in columns, [R, N]: with tokens along a vector's
// lanes, rotation, norms and softmax need no sum across lanes. Only a block of the attention matrix is in memory at a
// time. Every sum runs in an order that depends on shapes alone.

#include "columns.h"
#include "products.h"

namespace {

constexpr float LOG2E = 1.44269504f;              // logits count in powers of two
constexpr float BOUND = 60;                       // of logits: sums of 2**60 stay floats without the largest taken out
constexpr int KEYS = 256;                         // of a piece of the matrix, by two vectors of queries
constexpr int BACK_KEYS = 64, BACK_QUERIES = 96;  // of a piece on the way back

// 2**x for x <= 127 to about one unit in the last place, x at least -126; NaN stays NaN.
inline Vector power(Vector x) {
  Vector least = Vector{} - 126.0f;
  x = larger(least, x);
  constexpr float SHIFT = 12583039.0f;  // 1.5 * 2**23 + 127: the nearest whole number's exponent is in the low bits
  Vector shifted = x + SHIFT;
  Vector r = x - (shifted - SHIFT);
  Vector square = r * r;
  Vector p = (r * 1.3400432e-03f + 9.6699884e-03f) * square + (r * 5.5502915e-02f + 2.4022181e-01f);
  p = p * square + (r * 6.9314722e-01f + 1.0f);
  Integers bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits <<= 23;
  Vector scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

// log2 of x, positive and normal: its bits give it to 0.05, and Newton's steps double the digits.
inline Vector logarithm(Vector x) {
  Integers bits;
  std::memcpy(&bits, &x, sizeof bits);
  Vector y = __builtin_convertvector(bits - 0x3f7a0000, Vector) * 0x1p-23f;
  for (int step = 0; step < 3; step++) y += (x * power(-y) - 1.0f) * LOG2E;
  return y;
}

struct Shape {
  int B, H, W, heads, R, f;
  int N = H / f * (W / f);
  int tasks = B * f * f * heads;
  int wide = up(R, LANES), tokens = up(N, LANES);  // in whole vectors; tokens past N repeat the last
  int64_t line = up(N, 16) | 16;  // from a row of tokens to the next: an odd number of cache lines spreads over sets
  Shape(int B, int H, int W, int heads, int R, int f) : B(B), H(H), W(W), heads(heads), R(R), f(f) {}
};

// What all tasks of a call share.
struct Plan {
  Shape s;
  std::vector<int64_t> pixels;  // token n's pixel in a map, less that of the sub-grid's first
  std::vector<int64_t> plain;   // n, for rows that lie one after the other
  Floats table;                 // rotary: cosines and signed sines of channels by tokens
  bool turned;
  Plan(const Shape& shape, const float* given)
      : s(shape), table(given ? 2 * size_t(s.wide) * s.line : 0), turned(given) {
    for (int n = 0, w = s.W / s.f; n < s.tokens + AHEAD; n++) {
      int at = n < s.N ? n : s.N - 1;
      plain.push_back(n);
      pixels.push_back(int64_t(at / w) * s.f * s.W + at % w * s.f);
      for (int part = 0; given && n < s.tokens && part < 2; part++)
        for (int r = 0; r < s.R; r++)
          table.data()[(part * s.wide + r) * s.line + n] = given[(int64_t(part) * s.N + at) * s.R + r];
    }
  }
  const float* turns(int n) const { return turned ? table.data() + n : nullptr; }
};

// One head of one sub-grid.
struct Task {
  const Plan& plan;
  int head;
  int64_t first;  // pixel of the batch
  Task(const Plan& shared, int index) : plan(shared) {
    const Shape& s = plan.s;
    head = index % s.heads;
    int grid = index / s.heads, b = grid / (s.f * s.f), a = grid / s.f % s.f, e = grid % s.f;
    first = (int64_t(b) * s.H + a) * s.W + e;
  }
  // Of a map whose pixels have some parts of h * R.
  template <typename T>
  Rows<T> rows(T* map, int parts, int part) const {
    int64_t all = int64_t(plan.s.heads) * plan.s.R;
    return {map + first * parts * all + part * all + head * plan.s.R, plan.pixels.data(), parts * all};
  }
};

// The larger of a column's norm and 1e-12; in double where squares leave the range of float.
inline Vector length(Vector square, const float* columns, const Shape& s) {
  Vector out;
  Integers plain = (square > 1e-30f) & (square < 1e37f);
  int all = -1;
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) all &= plain[i];
  if (all) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) out[i] = std::sqrt(square[i]);
    return out;
  }
  for (int i = 0; i < LANES; i++) {
    double sum = 0;
    for (int r = 0; r < s.R; r++) sum += double(columns[r * s.line + i]) * columns[r * s.line + i];
    out[i] = sum <= 1e-24 ? 1e-12f : float(std::sqrt(sum));
  }
  return out;
}

// Queries or keys to columns: turned, and with cosine of the given length; returns what they were divided by.
template <typename T>
inline Vector prepare(Rows<const T> rows, const Plan& plan, int n, bool cosine, float size, float* columns) {
  const Shape& s = plan.s;
  Vector square = gather(rows.from(n), s.R, s.line, plan.turns(n), columns), norm = Vector{} + 1;
  if (cosine) norm = length(square, columns, s);
  Vector scale = size / norm;
  if (cosine || size != 1)
    for (int r = 0; r < s.R; r++) store(columns + r * s.line, load(columns + r * s.line) * scale);
  return norm;
}

// Gradients of LANES prepared columns, whose length is ``size``, to ``scale`` times those of the rows as they came;
// returns their parts along the columns.
template <typename T>
inline Vector unprepare(const float* grads, const float* columns, const Plan& plan, int n, bool cosine, float size,
                        float scale, Vector norm, int count, Rows<T> rows) {
  const Shape& s = plan.s;
  Vector along{}, none{};
  float inverse = size == 0 ? 0 : 1 / size;
  if (cosine) along = dot(grads, columns, s.R, s.line) * inverse;
  Vector back = norm == 1e-12f ? none : along * inverse;
  scatter(grads, s.R, s.line, plan.turns(n), scale / norm, cosine ? columns : nullptr, back, count, rows.from(n));
  return along;
}

// Columns of logits, and the largest of each column.
struct Largest {
  float* most;
  template <int M, int V>
  void operator()(const Vector (&sum)[M][V], int j, float* c, int64_t ldc) const {
    Put{}(sum, j, c, ldc);
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      Vector largest = load(most + j + v * LANES);
#pragma GCC unroll 12
      for (int m = 0; m < M; m++) largest = larger(sum[m][v], largest);
      store(most + j + v * LANES, largest);
    }
  }
};

// Columns of logits to those of weights, and the sum of each column.
struct Weigh {
  float* all;
  template <int M, int V>
  void operator()(const Vector (&sum)[M][V], int j, float* c, int64_t ldc) const {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      Vector more = load(all + j + v * LANES);
#pragma GCC unroll 12
      for (int m = 0; m < M; m++) {
        Vector weight = power(sum[m][v]);
        store(c + m * ldc + v * LANES, weight);
        more += weight;
      }
      store(all + j + v * LANES, more);
    }
  }
};

inline float scale_of(const float* scales, int head, int R) {
  return scales ? scales[head] : 1.0f / std::sqrt(float(R));
}

template <typename T>
void forward(const T* qkv, const float* scales, const float* table, T* out, float* logs, Shape s, int threads) {
  int N = s.N, R = s.R, tokens = s.tokens;
  int64_t line = s.line;
  Plan plan(s, table);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    size_t columns = size_t(s.wide) * line;
    Floats q(columns), k(columns), v(columns), said(columns), most(line), all(line), weights(KEYS * 2 * LANES);
#pragma omp for schedule(static)
    for (int index = 0; index < s.tasks; index++) {
      Task task(plan, index);
      float size = LOG2E * scale_of(scales, task.head, R);
      bool bounded = scales && std::abs(size) <= BOUND;
      for (int n = 0; n < tokens; n += LANES) {
        prepare(task.rows(qkv, 3, 0), plan, n, scales, size, q.data() + n);
        prepare(task.rows(qkv, 3, 1), plan, n, scales, 1, k.data() + n);
        gather(task.rows(qkv, 3, 2).from(n), R, line, nullptr, v.data() + n);
        store(most.data() + n, bounded ? Vector{} : Vector{} - INFINITY);
        store(all.data() + n, Vector{});
      }
      for (int j0 = 0; j0 < N; j0 += KEYS) {
        int keys = N - j0 < KEYS ? N - j0 : KEYS;
        for (int n = 0; n < tokens; n += 2 * LANES) {
          int vectors = n + LANES < tokens ? 2 : 1;
          float *piece = weights.data(), *sums = all.data() + n;
          if (bounded) {
            product(k.data() + j0, 1, line, q.data() + n, line, keys, vectors, R, piece, 2 * LANES, Weigh{sums});
          } else {
            float* largest = most.data() + n;
            Vector old[2] = {load(largest), load(largest + (vectors - 1) * LANES)};
            product(k.data() + j0, 1, line, q.data() + n, line, keys, vectors, R, piece, 2 * LANES, Largest{largest});
            for (int u = 0; u < vectors; u++) {
              float *p = piece + u * LANES, *c = said.data() + n + u * LANES;
              Vector now = load(largest + u * LANES), more{}, shrink = power(old[u] - now);
              for (int i = 0; i < keys; i++) {
                Vector weight = power(load(p + i * 2 * LANES) - now);
                store(p + i * 2 * LANES, weight);
                more += weight;
              }
              for (int r = 0; j0 && r < R; r++) store(c + r * line, load(c + r * line) * shrink);
              store(sums + u * LANES, j0 ? more + load(sums + u * LANES) * shrink : more);
            }
          }
          product(v.data() + j0, line, 1, piece, 2 * LANES, R, vectors, keys, said.data() + n, line, Put{j0 > 0});
        }
      }
      for (int n = 0; n < tokens; n += LANES) {
        int count = N - n < LANES ? N - n : LANES;
        Vector sum = load(all.data() + n), log = load(most.data() + n) + logarithm(sum);
        std::memcpy(logs + int64_t(index) * N + n, &log, count * sizeof(float));
        scatter(said.data() + n, R, line, nullptr, 1 / sum, nullptr, sum, count, task.rows(out, 1, 0).from(n));
      }
    }
  }
}

// gradients is [B, f, f, h], of the scales.
template <typename T>
void backward(const T* grad, const T* qkv, const float* scales, const float* table, const T* out, const float* logs,
              T* to, float* gradients, Shape s, int threads) {
  int N = s.N, R = s.R, tokens = s.tokens, wide = s.wide;
  int64_t line = s.line;
  Plan plan(s, table);
  Vector one = Vector{} + 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    size_t columns = size_t(wide) * line, rows = size_t(tokens) * wide;
    Floats q(columns), k(columns), v(columns), g(columns), dq(columns), dk(columns), dv(columns);
    Floats q_norms(line), k_norms(line), means(line), keys(rows), of_q(rows);
    Floats weights(BACK_QUERIES * BACK_KEYS), slopes(BACK_QUERIES * BACK_KEYS);
    Rows<float> key_rows{keys.data(), plan.plain.data(), wide};
    Rows<const float> of_q_rows{of_q.data(), plan.plain.data(), wide};
#pragma omp for schedule(static)
    for (int index = 0; index < s.tasks; index++) {
      Task task(plan, index);
      float size = scale_of(scales, task.head, R), length = LOG2E * size;
      const float* log = logs + int64_t(index) * N;
      for (int n = 0; n < tokens; n += LANES) {
        store(q_norms.data() + n, prepare(task.rows(qkv, 3, 0), plan, n, scales, length, q.data() + n));
        store(k_norms.data() + n, prepare(task.rows(qkv, 3, 1), plan, n, scales, 1, k.data() + n));
        gather(task.rows(qkv, 3, 2).from(n), R, line, nullptr, v.data() + n);
        gather(task.rows(grad, 1, 0).from(n), R, line, nullptr, g.data() + n);
        gather(task.rows(out, 1, 0).from(n), R, line, nullptr, dq.data() + n);
        store(means.data() + n, dot(g.data() + n, dq.data() + n, R, line));
        scatter(k.data() + n, R, line, nullptr, one, nullptr, one, LANES, key_rows.from(n));
      }
      for (int j0 = 0; j0 < N; j0 += BACK_KEYS) {
        int count = N - j0 < BACK_KEYS ? N - j0 : BACK_KEYS, vectors = up(count, LANES) / LANES;
        for (int n0 = 0; n0 < N; n0 += BACK_QUERIES) {
          int queries = N - n0 < BACK_QUERIES ? N - n0 : BACK_QUERIES;
          float *weight = weights.data(), *slope = slopes.data();
          product(q.data() + n0, 1, line, k.data() + j0, line, queries, vectors, R, weight, BACK_KEYS, Put{});
          product(g.data() + n0, 1, line, v.data() + j0, line, queries, vectors, R, slope, BACK_KEYS, Put{});
          for (int i = 0; i < queries; i++) {
            float minus = log[n0 + i], mean = means.data()[n0 + i];
            for (int u = i * BACK_KEYS; u < i * BACK_KEYS + vectors * LANES; u += LANES) {
              Vector p = power(load(weight + u) - minus);
              store(weight + u, p);
              store(slope + u, p * (load(slope + u) - mean));
            }
          }
          product(q.data() + n0, line, 1, slope, BACK_KEYS, R, vectors, queries, dk.data() + j0, line, Put{n0 > 0});
          product(g.data() + n0, line, 1, weight, BACK_KEYS, R, vectors, queries, dv.data() + j0, line, Put{n0 > 0});
          product(slope, BACK_KEYS, 1, keys.data() + int64_t(j0) * wide, wide, queries, wide / LANES, count,
                  of_q.data() + int64_t(n0) * wide, wide, Put{j0 > 0});
        }
      }
      Vector of_scale{};
      for (int n = 0; n < tokens; n += LANES) {
        int count = N - n < LANES ? N - n : LANES;
        gather(of_q_rows.from(n), R, line, nullptr, dq.data() + n);
        of_scale += unprepare(dq.data() + n, q.data() + n, plan, n, scales, length, size, load(q_norms.data() + n),
                              count, task.rows(to, 3, 0));
        unprepare(dk.data() + n, k.data() + n, plan, n, scales, 1, 1 / LOG2E, load(k_norms.data() + n), count,
                  task.rows(to, 3, 1));
        scatter(dv.data() + n, R, line, nullptr, one, nullptr, one, count, task.rows(to, 3, 2).from(n));
      }
      gradients[index] = total(of_scale);
    }
  }
}

}  // namespace

extern "C" {

#define ATTENTION(NAME, T)                                                                                           \
  void attention_##NAME(const void* qkv, const void* scales, const void* table, void* out, void* logs, int B, int H, \
                        int W, int heads, int R, int f, int threads) {                                               \
    forward((const T*)qkv, (const float*)scales, (const float*)table, (T*)out, (float*)logs,                         \
            Shape(B, H, W, heads, R, f), threads);                                                                   \
  }                                                                                                                  \
  void attention_backward_##NAME(const void* grad, const void* qkv, const void* scales, const void* table,           \
                                 const void* out, const void* logs, void* to, void* gradients, int B, int H, int W,  \
                                 int heads, int R, int f, int threads) {                                             \
    backward((const T*)grad, (const T*)qkv, (const float*)scales, (const float*)table, (const T*)out,                \
             (const float*)logs, (T*)to, (float*)gradients, Shape(B, H, W, heads, R, f), threads);                   \
  }

ATTENTION(f32, float)
ATTENTION(bf16, BFloat16)

}  // extern "C"
