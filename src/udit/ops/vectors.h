// What the kernels share: element types, vectors of floats, memory on cache lines.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vector v) {
  std::memcpy(p, &v, sizeof v);
}

inline float total(Vector v) {
  float half[LANES / 2];
  for (int i = 0; i < LANES / 2; i++) half[i] = v[i] + v[i + LANES / 2];
  for (int width = LANES / 4; width > 0; width /= 2)
    for (int i = 0; i < width; i++) half[i] += half[i + width];
  return half[0];
}

struct BFloat16 {
  uint16_t bits;
};

inline float widen(float x) {
  return x;
}
inline float widen(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline void narrow(float x, float* out) {
  *out = x;
}
inline void narrow(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = nan ? 0x7fc0 : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
}

// Floats from a cache line's boundary on, zero at first.
class Floats {
 public:
  explicit Floats(size_t count) : memory(count + 16) {
    auto address = reinterpret_cast<uintptr_t>(memory.data());
    start = memory.data() + (64 - address % 64) % 64 / sizeof(float);
  }
  float* data() { return start; }
  const float* data() const { return start; }

 private:
  std::vector<float> memory;
  float* start;
};

}  // namespace
