// The gradient of a 3x3 convolution's weight, with stride 1 and zeros around the map: a product of two maps over all
// pixels for each of the kernel's nine places.
//
// x is [B, H, W, I], grad [B, H, W, O], to [O, I, 3, 3]. Pixels come in chunks, rows of one map or some whole maps. The
// gradient is packed once, in panels of no more than ROWS channels; a task packs two vectors of x's channels, three
// times, so that a kernel's column is one of the three and its row a step in it. PART pixels are summed in registers
// and then added to the sums of those before them. Every sum runs in an order that depends on shapes alone.

#include <algorithm>
#include <memory>

#include "panels.h"

namespace {

constexpr int PIXELS = 512;  // of a chunk: a panel of the gradient stays in the first cache
constexpr int PART = 128;    // pixels that are summed from zero: rounding errors grow with the length of a sum

struct Shape {
  int B, H, W, I, O;
  int rows = std::clamp(PIXELS / W, 1, H);                       // of a chunk's map
  int maps = rows < H ? 1 : std::clamp(PIXELS / (H * W), 1, B);  // of a chunk
  int bands = (H + rows - 1) / rows;                             // of a map
  int chunks = (B + maps - 1) / maps * bands;
  int panels = (O + ROWS - 1) / ROWS;  // of the gradient: some of them have one channel less than others
  Shape(int B, int H, int W, int I, int O) : B(B), H(H), W(W), I(I), O(O) {}
  int channel(int panel) const { return int(int64_t(panel) * O / panels); }  // a panel's first
};

struct Chunk {
  int b, maps, row, rows;
  Chunk(const Shape& s, int index)
      : b(index / s.bands * s.maps),
        maps(std::min(s.maps, s.B - b)),
        row(index % s.bands * s.rows),
        rows(std::min(s.rows, s.H - row)) {}
  int64_t first(const Shape& s) const { return (int64_t(b) * s.H + row) * s.W; }  // pixel; the others follow
  int pixels(const Shape& s) const { return maps * rows * s.W; }
};

// A chunk's gradient to panels [pixels, channels], one after the other.
void pack_gradient(const float* grad, const Shape& s, const Chunk& chunk, float* out) {
  int pixels = chunk.pixels(s);
  grad += chunk.first(s) * s.O;
  for (int panel = 0; panel < s.panels; panel++) {
    int from = s.channel(panel), count = s.channel(panel + 1) - from;
    for (int n = 0; n < pixels; n++)
      for (int i = 0; i < count; i++) *out++ = grad[int64_t(n) * s.O + from + i];
  }
}

// PANEL channels of a chunk and the rows above and below it, [3, maps, rows + 2, W, PANEL]: moved a pixel to the right,
// as they are, moved to the left. Zeros where the map ends.
void pack_map(const float* x, const Shape& s, const Chunk& chunk, int first, float* out) {
  int n = std::min(PANEL, s.I - first);
  for (int shift = -1; shift <= 1; shift++)
    for (int b = chunk.b; b < chunk.b + chunk.maps; b++)
      for (int h = chunk.row - 1; h <= chunk.row + chunk.rows; h++)
        for (int w = shift; w < s.W + shift; w++, out += PANEL) {
          bool there = h >= 0 && h < s.H && w >= 0 && w < s.W;
          const float* from = x + ((int64_t(b) * s.H + h) * s.W + w) * s.I + first;
          if (there && n == PANEL)
            std::memcpy(out, from, PANEL * sizeof(float));
          else
            for (int i = 0; i < PANEL; i++) out[i] = there && i < n ? from[i] : 0.0f;
        }
}

// Adds M channels of the gradient times PANEL of the map to c, over the pixels of some maps, ``step`` floats apart.
template <int M>
__attribute__((noinline)) void tile(const float* grad, const float* x, int64_t step, int maps, int pixels, float* c) {
  for (; maps > 0; maps--, grad += pixels * M, x += step)
    for (int n = 0; n < pixels; n += PART) {
      Tile<M> sums;
      sums.add(grad + n * M, 1, M, x + n * PANEL, std::min(PART, pixels - n));
      sums.put_on(c, PANEL);
    }
}

void weights(const float* x, const float* grad, float* to, Shape s, int threads) {
  int columns = (s.I + PANEL - 1) / PANEL, shares = std::clamp(2 * threads / columns, 1, s.panels);
  if (threads == 1) shares = 1;
  std::unique_ptr<float[]> gradient(new float[int64_t(s.B) * s.H * s.W * s.O]);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    int64_t step = int64_t(s.rows + 2) * s.W * PANEL;
    Floats map(3 * s.maps * step), sums(int64_t(9) * ((s.panels + shares - 1) / shares) * ROWS * PANEL);
#pragma omp for schedule(static)
    for (int index = 0; index < s.chunks; index++) {
      Chunk chunk(s, index);
      pack_gradient(grad, s, chunk, gradient.get() + chunk.first(s) * s.O);
    }
#pragma omp for schedule(static)
    for (int task = 0; task < columns * shares; task++) {
      int first = task / shares * PANEL, share = task % shares;
      int low = share * s.panels / shares, high = (share + 1) * s.panels / shares;
      int lowest = s.channel(low), channels = s.channel(high) - lowest;
      std::fill_n(sums.data(), int64_t(9) * channels * PANEL, 0.0f);
      for (int index = 0; index < s.chunks; index++) {
        Chunk chunk(s, index);
        int pixels = chunk.rows * s.W;
        int64_t step = int64_t(chunk.rows + 2) * s.W * PANEL;
        pack_map(x, s, chunk, first, map.data());
        for (int column = 0; column < 3; column++)
          for (int panel = low; panel < high; panel++) {
            int from = s.channel(panel), count = s.channel(panel + 1) - from;
            const float* g = gradient.get() + chunk.first(s) * s.O + int64_t(chunk.maps) * pixels * from;
            for (int row = 0; row < 3; row++)
              constant<ROWS>(count, [&](auto m) {
                tile<m>(g, map.data() + column * chunk.maps * step + int64_t(row) * s.W * PANEL, step, chunk.maps,
                        pixels, sums.data() + (int64_t(row * 3 + column) * channels + from - lowest) * PANEL);
              });
          }
      }
      for (int o = 0; o < channels; o++)
        for (int i = 0; i < std::min(PANEL, s.I - first); i++)
          for (int place = 0; place < 9; place++)
            to[((lowest + o) * int64_t(s.I) + first + i) * 9 + place] =
                sums.data()[(int64_t(place) * channels + o) * PANEL + i];
    }
  }
}

}  // namespace

extern "C" {

void weights_f32(const void* x, const void* grad, void* to, int B, int H, int W, int I, int O, int threads) {
  weights((const float*)x, (const float*)grad, (float*)to, Shape(B, H, W, I, O), threads);
}

}  // extern "C"
