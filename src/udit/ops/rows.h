// Maps as rows of channels, and the factors by which a condition acts on all rows of a sample.

#pragma once

#include "vectors.h"

namespace {

constexpr int BAND = 64;  // rows of a task, and so of a sum

// [B, D] floats, with a step from row to row.
struct Factors {
  const float* start;
  int step;
  const float* operator[](int b) const { return start + int64_t(b) * step; }
};

struct Band {
  int b, first, last;
};

// A map of B samples of N rows of D channels. A task is BAND rows of one sample.
struct Bands {
  int B, N, D;
  int count() const { return (N + BAND - 1) / BAND; }  // of a sample
  int tasks() const { return B * count(); }
  int wide() const { return (D + LANES - 1) / LANES * LANES; }
  Band rows(int task) const {
    int first = task % count() * BAND;
    return {task / count(), first, first + BAND < N ? first + BAND : N};
  }
};

}  // namespace
