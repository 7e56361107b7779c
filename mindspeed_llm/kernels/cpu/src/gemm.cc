// Linear layers. A few rows (decoding) by a loop of their own; else products of packed operands, on AMX tiles where the
// processor has them and the rows repay it, or on vector units.
#include <algorithm>

#include "ops.h"

namespace msl {
namespace {

constexpr i64 kGemvRows = 15;
constexpr i64 kTileTokens = 64;
constexpr i64 kThinRank = 32;  // rows or columns of a result that are too few to repay packing

// As many rows of A as fit the scratch memory are packed by all threads; then each task packs columns of B and
// multiplies. Every element of C is summed in an order that depends on K alone, however C is cut into tasks.
void whole_depth(const ProductKernel &f, Product g) {
  constexpr i64 kPackedBytes = i64{24} << 20, kLeast = 512, kColumnStep = 32;
  const i64 most = std::max(kLeast, kPackedBytes / f.packed_bytes(g.dt, kLeast, g.K) * kLeast);
  const i64 height = round_up(ceil_div(g.M, ceil_div(g.M, most)), f.rows);
  // Many tasks, for threads that are not equally fast should end at about the same time: by cutting a tall C's rows, or
  // else by narrower columns; and where both are few, rows again, so that every thread has work.
  const i64 threads = num_threads(), wide = ceil_div(g.N, f.columns);
  const i64 tall = std::max<i64>(1, std::min(ceil_div(12 * threads, wide), height / f.least_rows));
  const i64 across = std::max(wide, std::min(ceil_div(g.N, f.least_columns), ceil_div(8 * threads, tall)));
  const i64 down = std::max(tall, std::min(ceil_div(2 * threads, across), ceil_div(height, 128)));
  const i64 width = round_up(ceil_div(g.N, across), kColumnStep);
  const size_t bytes = static_cast<size_t>(f.packed_bytes(g.dt, height, g.K));
  Scratch scratch(Scratch::padded(bytes));
  g.packed = scratch.take<char>(bytes);
  for (i64 first = 0; first < g.M; first += height) {
    const i64 end = std::min(first + height, g.M), strips = ceil_div(end - first, f.rows);
    const auto row = [&](i64 strip) { return std::min(first + strip * f.rows, end); };
    parallel_for(strips, 1, [&](i64 b, i64 e) { f.pack(g, first, end, row(b), row(e)); });
    run_tasks(static_cast<int>(across * down), [&](int t) {
      const i64 n0 = t % across * width, m0 = row(strips * (t / across) / down), m1 = row(strips * (t / across + 1) / down);
      if (n0 < g.N && m0 < m1) f.multiply(g, first, end, m0, m1, n0, std::min(n0 + width, g.N));
    });
  }
}

// A long depth is worked through in parts, added up in fp32: packed operands are read again and again, so a part of them
// should stay in the last-level cache.
void product(i64 tokens, Product g) {
  const Isa &isa_now = isa();
  const ProductKernel &f = isa_now.tiles.multiply != nullptr && tokens >= kTileTokens ? isa_now.tiles : isa_now.panels;
  if (g.K <= f.most_depth) return whole_depth(f, g);
  constexpr i64 kSumBytes = i64{32} << 20, kDepthStep = 64;
  const bool in_place = g.wide || g.dt == kF32;
  const i64 element = static_cast<i64>(dtype_size(g.dt)), row_bytes = g.N * static_cast<i64>(sizeof(float));
  const i64 height = in_place ? g.M : std::min(g.M, std::max<i64>(512, kSumBytes / row_bytes));
  const i64 depth = round_up(ceil_div(g.K, ceil_div(g.K, f.most_depth)), kDepthStep);
  Scratch scratch(in_place ? 0 : static_cast<size_t>(height * row_bytes));
  const auto moved = [&](const void *p, i64 elements) { return static_cast<const char *>(p) + elements * element; };
  for (i64 m = 0; m < g.M; m += height) {
    Product part = g;
    part.M = std::min(height, g.M - m);
    part.wide = true;
    if (!in_place) {
      part.c = scratch.take<float>(0);
      part.ldc = g.N;
    }
    for (i64 k = 0; k < g.K; k += depth) {
      part.K = std::min(depth, g.K - k);
      part.a = moved(g.a, m * g.a_row + k * g.a_col);
      part.b = moved(g.b, k * g.b_row);
      whole_depth(f, part);
      part.bias = nullptr;
      part.accumulate = true;
    }
    if (in_place) continue;
    parallel_for(part.M, std::max<i64>(1, 16384 / g.N), [&](i64 b, i64 e) {
      for (i64 r = b; r < e; ++r) {
        isa_now.from_float(g.dt, static_cast<const float *>(part.c) + r * g.N,
                           static_cast<char *>(g.c) + (m + r) * g.ldc * element, g.N);
      }
    });
  }
}

}  // namespace

void linear_fwd(int dt, const void *x, const void *w, const void *bias, void *y, i64 M, i64 N, i64 K) {
  if (M == 0 || N == 0) return;
  if (M <= kGemvRows || K == 0) {
    const FewRows &f = isa().few_rows;
    const size_t bytes = static_cast<size_t>(f.packed_bytes(dt, M, K));
    Scratch scratch(Scratch::padded(bytes));
    char *packed = scratch.take<char>(bytes);
    f.pack(dt, x, M, K, packed);
    parallel_for(ceil_div(N, f.columns), 32768 / (f.columns * (K + 1)) + 1, [&](i64 n0, i64 n1) {
      f.multiply(dt, packed, w, bias, y, M, N, K, n0 * f.columns, std::min(n1 * f.columns, N));
    });
    return;
  }
  product(M, {dt, M, N, K, x, w, bias, y, nullptr, K, 1, 1, K, N, false, false});
}

void linear_dgrad(int dt, const void *g, const void *w, void *dx, i64 M, i64 N, i64 K) {
  if (M == 0 || K == 0) return;
  if (N == 0) {
    __builtin_memset(dx, 0, static_cast<size_t>(M * K) * dtype_size(dt));
    return;
  }
  product(M, {dt, M, K, N, g, w, nullptr, dx, nullptr, N, 1, K, 1, K, false, false});
}

void linear_wgrad(int dt, const void *g, const void *x, float *main_grad, i64 M, i64 N, i64 K, bool accumulate) {
  if (M == 0 && !accumulate) op_zero(main_grad, N * K);
  if (M == 0 || N == 0 || K == 0) return;
  if (N <= kThinRank) return op_thin_wgrad(dt, x, g, main_grad, M, K, N, false, accumulate);
  if (K <= kThinRank) return op_thin_wgrad(dt, g, x, main_grad, M, N, K, true, accumulate);
  product(M, {dt, N, K, M, g, x, nullptr, main_grad, nullptr, 1, N, K, 1, K, true, accumulate});
}

}  // namespace msl
