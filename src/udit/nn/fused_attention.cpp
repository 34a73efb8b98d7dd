// Attention within the interleaved sub-grids of a map, from the product of queries, keys and values to what the heads say.
//
// qkv is [B, H, W, 3, h, R], out [B, H, W, h, R]; a sub-grid's N = H / f * W / f pixels (i * f + a, j * f + e) attend to
// one another. A task is one head of one sub-grid: it gathers its rows, turns and normalises them, and works in a scratch
// of floats. No more than BAND rows of an attention matrix are there at once. Every sum runs in an order that depends on
// shapes alone.

#include "vectors.h"

namespace {

constexpr float LOG2E = 1.44269504f;  // logits count in powers of two
constexpr int ROWS = 6;  // tiles of 6 x 2 or 12 x 1 vectors of sums, with what they multiply, fill AVX2's 16 registers

constexpr int AHEAD = 12;  // tokens

inline int up(int n, int step) { return (n + step - 1) / step * step; }

// M x (V vectors) of C (+)= A B; A by strides, B and C by rows.
template <int M, int V, bool ADD>
__attribute__((noinline)) void tile(const float* a, int64_t row, int64_t column, const float* b, int64_t ldb, float* c,
                                    int64_t ldc, int K) {
  Vector sum[M][V];
#pragma GCC unroll 12
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[i][v] = ADD ? load(c + i * ldc + v * LANES) : Vector{};
  for (int k = 0; k < K; k++) {
    Vector right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) right[v] = load(b + k * ldb + v * LANES);
#pragma GCC unroll 12
    for (int i = 0; i < M; i++) {
      float left = a[i * row + k * column];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store(c + i * ldc + v * LANES, sum[i][v]);
}

// C [M, n] (+)= A [M, K] B [K, n]; M a multiple of ROWS, n one of LANES.
template <bool ADD>
void product(const float* a, int64_t row, int64_t column, const float* b, int64_t ldb, float* c, int64_t ldc, int M,
             int n, int K) {
  int j = 0, i = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES)
    for (i = 0; i < M; i += ROWS) tile<ROWS, 2, ADD>(a + i * row, row, column, b + j, ldb, c + i * ldc + j, ldc, K);
  if (j == n) return;
  for (i = 0; i + 2 * ROWS <= M; i += 2 * ROWS)
    tile<2 * ROWS, 1, ADD>(a + i * row, row, column, b + j, ldb, c + i * ldc + j, ldc, K);
  if (i < M) tile<ROWS, 1, ADD>(a + i * row, row, column, b + j, ldb, c + i * ldc + j, ldc, K);
}

// 2**x for x <= 127 to about one unit in the last place, x at least -126; NaN stays NaN.
inline Vector power(Vector x) {
  x = x < -126.0f ? Vector{} - 126.0f : x;
  Vector shifted = x + 12582912.0f;  // 1.5 * 2**23: the nearest whole number is in the low bits
  Vector r = x - (shifted - 12582912.0f);
  Vector p = r * 1.5353359913e-04f + 1.3398874540e-03f;
  p = p * r + 9.6184373667e-03f;
  p = p * r + 5.5503324707e-02f;
  p = p * r + 2.4022647914e-01f;
  p = p * r + 6.9314720286e-01f;
  p = p * r + 1.0f;
  Integers bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

inline float largest(const float* row, int count) {
  Vector most = load(row);
  for (int j = LANES; j < count; j += LANES) {
    Vector next = load(row + j);
    most = next > most ? next : most;
  }
  float out = most[0];
  for (int i = 1; i < LANES; i++) out = most[i] > out ? most[i] : out;
  return out;
}

inline float dot(const float* a, const float* b, int wide) {
  Vector sum{};
  for (int r = 0; r < wide; r += LANES) sum += load(a + r) * load(b + r);
  return total(sum);
}

inline Vector swapped(Vector x) {
#if defined(__AVX512F__)
  return __builtin_shuffle(x, Integers{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
#else
  return __builtin_shuffle(x, Integers{1, 0, 3, 2, 5, 4, 7, 6});
#endif
}

// (a, b) -> (a cos - b sin, b cos + a sin); the table's sines are signed, so that the way back takes them off.
inline void turn(const float* x, const float* cosine, const float* sine, float sign, int wide, float* out) {
  for (int r = 0; r < wide; r += LANES)
    store(out + r, load(x + r) * load(cosine + r) + sign * swapped(load(x + r)) * load(sine + r));
}

// The larger of the norm and 1e-12, and whether it is the norm; in double where squares leave the range of float.
inline float length(const float* x, int wide, bool* above) {
  float square = dot(x, x, wide), out;
  if (square > 1e-30f && square < 1e37f) {
    out = std::sqrt(square);
  } else {
    double sum = 0;
    for (int r = 0; r < wide; r++) sum += double(x[r]) * x[r];
    out = float(std::sqrt(sum));
  }
  *above = !(out <= 1e-12f);
  return *above ? out : 1e-12f;
}

struct Shape {
  int B, H, W, heads, R, f;
  int N() const { return H / f * (W / f); }
  int tasks() const { return B * f * f * heads; }
  int columns() const { return up(R, LANES); }           // of a row of queries, keys or values
  int tokens() const { return up(up(N(), ROWS), LANES); }  // that all tiles can have, as rows or as columns
  int line() const { return tokens() + 2 * LANES; }  // of a row of tokens: no power of two, which would share cache sets
  int band() const {  // rows of the attention matrix at once: two of them stay in the second cache
    int rows = 32768 / tokens() / ROWS * ROWS, most = up(N(), ROWS);
    rows = rows < ROWS ? ROWS : rows > 48 ? 48 : rows;
    return rows < most ? rows : most;
  }
};

// What all tasks of a call share.
struct Plan {
  Shape s;
  std::vector<int64_t> pixels;  // token n's pixel in a map, less that of the sub-grid's first
  Floats turns;                 // the rotary table, its rows of whole vectors
  bool turned;
  Plan(const Shape& shape, const float* table)
      : s(shape), pixels(s.N()), turns(table ? 2 * int64_t(s.N()) * s.columns() : 0), turned(table) {
    int w = s.W / s.f;
    for (int n = 0; n < s.N(); n++) pixels[n] = int64_t(n / w) * s.f * s.W + n % w * s.f;
    for (int row = 0; table && row < 2 * s.N(); row++)
      std::memcpy(turns.data() + int64_t(row) * s.columns(), table + int64_t(row) * s.R, s.R * sizeof(float));
  }
  const float* cosine(int n) const { return turns.data() + int64_t(n) * s.columns(); }
  const float* sine(int n) const { return cosine(s.N() + n); }
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
  // Token n's channels in a map whose pixels have some parts of h * R.
  int64_t place(int n, int parts, int part) const {
    return ((first + plan.pixels[n]) * parts + part) * plan.s.heads * plan.s.R + int64_t(head) * plan.s.R;
  }
};

template <typename T>
void gather(const Task& task, const T* map, int parts, int part, float* rows) {
  int R = task.plan.s.R, wide = task.plan.s.columns(), N = task.plan.s.N();
  for (int n = 0; n < N; n++) {
    const T* from = map + task.place(n, parts, part);
    if (n + AHEAD < N) {  // strides this long the processor does not foresee
      const T* soon = map + task.place(n + AHEAD, parts, part);
      for (int r = 0; r < R; r += 64 / int(sizeof(T))) __builtin_prefetch(soon + r);
    }
    float* to = rows + n * int64_t(wide);
    for (int r = 0; r < R; r++) to[r] = widen(from[r]);
  }
}

void transpose(const float* rows, const Shape& s, float* out) {
  int wide = s.columns(), N = s.N();
  int64_t line = s.line();
  for (int r = 0; r < s.R; r++)
    for (int n = 0; n < N; n++) out[r * line + n] = rows[n * int64_t(wide) + r];
}

// Rows in place: turned, and with cosine of the given length.
void prepare(float* rows, const Plan& plan, bool cosine, float size) {
  int wide = plan.s.columns(), N = plan.s.N();
  for (int n = 0; n < N; n++) {
    float* row = rows + n * int64_t(wide);
    if (plan.turned) turn(row, plan.cosine(n), plan.sine(n), 1, wide, row);
    bool above;
    float scale = cosine ? size / length(row, wide, &above) : size;
    for (int r = 0; r < wide; r += LANES) store(row + r, load(row + r) * scale);
  }
}

// Gradients of prepared rows to those of the rows as they came, in place; returns the gradient of ``size``.
float unprepare(float* grads, const float* given, const Plan& plan, bool cosine, float size, float* scratch) {
  int wide = plan.s.columns(), N = plan.s.N();
  double sum = 0;
  for (int n = 0; n < N; n++) {
    float* grad = grads + n * int64_t(wide);
    const float* now = given + n * int64_t(wide);
    float scale = size, back = 0;
    if (cosine) {
      if (plan.turned) {
        turn(now, plan.cosine(n), plan.sine(n), 1, wide, scratch);
        now = scratch;
      }
      bool above;
      float norm = length(now, wide, &above), along = dot(grad, now, wide) / norm;
      sum += along;
      scale = size / norm;
      back = above ? along / norm : 0.0f;
    }
    for (int r = 0; r < wide; r += LANES) store(grad + r, scale * (load(grad + r) - load(now + r) * back));
    if (plan.turned) turn(grad, plan.cosine(n), plan.sine(n), -1, wide, grad);
  }
  return float(sum);
}

inline float size_of(const float* temperature, int head, int R) {
  return temperature ? temperature[head] : 1.0f / std::sqrt(float(R));
}

template <typename T>
void forward(const T* qkv, const float* temperature, const float* table, T* out, float* logs, Shape s, int threads) {
  int N = s.N(), R = s.R, wide = s.columns(), keys = up(s.N(), LANES), line = s.line(), band = s.band();
  Plan plan(s, table);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    size_t rows = size_t(up(N, band)) * wide;
    Floats q(rows), k(size_t(N) * wide), kt(size_t(R) * line), v(size_t(N) * wide);
    Floats weights(size_t(band) * line), said(size_t(band) * wide);
#pragma omp for schedule(static)
    for (int index = 0; index < s.tasks(); index++) {
      Task task(plan, index);
      gather(task, qkv, 3, 0, q.data());
      gather(task, qkv, 3, 1, k.data());
      gather(task, qkv, 3, 2, v.data());
      prepare(q.data(), plan, temperature, LOG2E * size_of(temperature, task.head, R));
      prepare(k.data(), plan, temperature, 1);
      transpose(k.data(), s, kt.data());
      for (int n0 = 0; n0 < N; n0 += band) {
        product<false>(q.data() + int64_t(n0) * wide, wide, 1, kt.data(), line, weights.data(), line, band, keys, R);
        float inverse[48];
        int count = N - n0 < band ? N - n0 : band;
        for (int i = 0; i < count; i++) {
          float* row = weights.data() + int64_t(i) * line;
          for (int j = N; j < keys; j++) row[j] = -INFINITY;
          float most = largest(row, keys);
          Vector sum{};
          for (int j = 0; j < keys; j += LANES) {
            Vector p = power(load(row + j) - most);
            store(row + j, p);
            sum += p;
          }
          float all = total(sum);
          inverse[i] = 1 / all;
          logs[int64_t(index) * N + n0 + i] = most + std::log2(all);
        }
        product<false>(weights.data(), line, 1, v.data(), wide, said.data(), wide, band, wide, N);
        for (int i = 0; i < count; i++) {
          T* to = out + task.place(n0 + i, 1, 0);
          for (int r = 0; r < R; r++) narrow(said.data()[i * wide + r] * inverse[i], to + r);
        }
      }
    }
  }
}

// gradients is [B, f, f, h], of the temperatures.
template <typename T>
void backward(const T* grad, const T* qkv, const float* temperature, const float* table, const T* out, const float* logs,
              T* to, float* gradients, Shape s, int threads) {
  int N = s.N(), R = s.R, wide = s.columns(), tokens = s.tokens(), line = s.line(), band = s.band();
  Plan plan(s, table);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    size_t rows = size_t(up(tokens, band)) * wide, columns = size_t(R) * line;
    Floats q(rows), k(rows), v(rows), g(rows), o(rows), kt(columns), vt(columns), dq(rows), dk(rows), dv(rows);
    Floats weights(size_t(band) * line), slopes(size_t(band) * line), scratch(wide);
#pragma omp for schedule(static)
    for (int index = 0; index < s.tasks(); index++) {
      Task task(plan, index);
      float size = size_of(temperature, task.head, R);
      gather(task, qkv, 3, 0, q.data());
      gather(task, qkv, 3, 1, k.data());
      gather(task, qkv, 3, 2, v.data());
      gather(task, grad, 1, 0, g.data());
      gather(task, out, 1, 0, o.data());
      prepare(q.data(), plan, temperature, LOG2E * size);
      prepare(k.data(), plan, temperature, 1);
      transpose(k.data(), s, kt.data());
      transpose(v.data(), s, vt.data());
      std::memset(dk.data(), 0, rows * sizeof(float));
      std::memset(dv.data(), 0, rows * sizeof(float));
      for (int n0 = 0; n0 < N; n0 += band) {
        const float *queries = q.data() + int64_t(n0) * wide, *grads = g.data() + int64_t(n0) * wide;
        product<false>(queries, wide, 1, kt.data(), line, weights.data(), line, band, tokens, R);
        product<false>(grads, wide, 1, vt.data(), line, slopes.data(), line, band, tokens, R);
        for (int i = 0; i < band; i++) {
          float *p = weights.data() + int64_t(i) * line, *slope = slopes.data() + int64_t(i) * line;
          if (n0 + i >= N) {
            std::memset(p, 0, tokens * sizeof(float));
            std::memset(slope, 0, tokens * sizeof(float));
            continue;
          }
          float log = logs[int64_t(index) * N + n0 + i];
          float mean = dot(grads + i * wide, o.data() + (int64_t(n0) + i) * wide, wide);
          for (int j = N; j < tokens; j++) p[j] = -INFINITY;
          for (int j = 0; j < tokens; j += LANES) {
            Vector weight = power(load(p + j) - log);
            store(p + j, weight);
            store(slope + j, weight * (load(slope + j) - mean));
          }
        }
        product<false>(slopes.data(), line, 1, k.data(), wide, dq.data() + int64_t(n0) * wide, wide, band, wide, N);
        product<true>(slopes.data(), 1, line, queries, wide, dk.data(), wide, up(N, ROWS), wide, band);
        product<true>(weights.data(), 1, line, grads, wide, dv.data(), wide, up(N, ROWS), wide, band);
      }
      gather(task, qkv, 3, 0, q.data());
      gather(task, qkv, 3, 1, k.data());
      gradients[index] = unprepare(dq.data(), q.data(), plan, temperature, size, scratch.data());
      unprepare(dk.data(), k.data(), plan, temperature, 1 / LOG2E, scratch.data());
      const float* parts[3] = {dq.data(), dk.data(), dv.data()};
      for (int part = 0; part < 3; part++)
        for (int n = 0; n < N; n++) {
          T* row = to + task.place(n, 3, part);
          for (int r = 0; r < R; r++) narrow(parts[part][n * int64_t(wide) + r], row + r);
        }
    }
  }
}

}  // namespace

extern "C" {

#define ATTENTION(NAME, T)                                                                                             \
  void attention_##NAME(const void* qkv, const void* temperature, const void* table, void* out, void* logs, int B,     \
                        int H, int W, int heads, int R, int f, int threads) {                                          \
    forward((const T*)qkv, (const float*)temperature, (const float*)table, (T*)out, (float*)logs,                      \
            Shape{B, H, W, heads, R, f}, threads);                                                                     \
  }                                                                                                                    \
  void attention_backward_##NAME(const void* grad, const void* qkv, const void* temperature, const void* table,        \
                                 const void* out, const void* logs, void* to, void* gradients, int B, int H, int W,    \
                                 int heads, int R, int f, int threads) {                                               \
    backward((const T*)grad, (const T*)qkv, (const float*)temperature, (const float*)table, (const T*)out,             \
             (const float*)logs, (T*)to, (float*)gradients, Shape{B, H, W, heads, R, f}, threads);                     \
  }

ATTENTION(f32, float)
ATTENTION(bf16, BFloat16)

}  // extern "C"
