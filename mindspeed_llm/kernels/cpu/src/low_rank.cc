// What an adapter of low rank adds to a product, and products whose result has few rows or columns.
#include <algorithm>

#include "ops.h"

namespace msl {
namespace {

// fp32 copy of w (P, Q) or of its transpose, rows `ld` apart
void pack(int dt, const void *w, bool across, i64 P, i64 Q, i64 ld, float *out) {
  const Isa &f = isa();
  const i64 step = f.lanes;
  parallel_for(ceil_div(P, step), std::max<i64>(1, 16384 / (step * ld)), [&](i64 b, i64 e) {
    f.thin_pack(dt, w, across, P, Q, ld, out, b * step, std::min(e * step, P));
  });
}

}  // namespace

void op_low_rank(int dt, const void *x, const void *down, bool down_across, const void *up, bool up_across, float scale,
                 void *total, void *hidden, i64 M, i64 K, i64 N, i64 rank) {
  constexpr i64 kStep = 12;  // rows, of which a task takes several
  const Isa &f = isa();
  const i64 R = round_up(rank, f.lanes), up_row = round_up(N, f.lanes);
  Scratch scratch(Scratch::padded(sizeof(float) * static_cast<size_t>(K * R)) +
                  Scratch::padded(sizeof(float) * static_cast<size_t>(rank * up_row)));
  float *down_packed = scratch.take<float>(static_cast<size_t>(K * R));
  float *up_packed = scratch.take<float>(static_cast<size_t>(rank * up_row));
  pack(dt, down, down_across, K, rank, R, down_packed);
  if (total != nullptr) pack(dt, up, up_across, rank, N, up_row, up_packed);
  const LowRank g{dt, M, K, N, rank, R, scale, x, down_packed, up_packed, total, hidden};
  parallel_for(ceil_div(M, kStep), 2, [&](i64 b, i64 e) { f.low_rank(g, b * kStep, std::min(e * kStep, M)); });
}

void op_thin_wgrad(int dt, const void *large, const void *thin, float *out, i64 M, i64 C, i64 rank, bool across,
                   bool accumulate) {
  constexpr i64 kColumns = 256;
  const Isa &f = isa();
  const i64 R = round_up(rank, f.lanes);
  Scratch scratch(sizeof(float) * static_cast<size_t>(M * R));
  float *packed = scratch.take<float>(static_cast<size_t>(M * R));
  pack(dt, thin, false, M, rank, R, packed);
  const ThinWgrad g{dt, M, C, rank, R, large, packed, out, across, accumulate};
  run_tasks(static_cast<int>(ceil_div(C, kColumns)),
            [&](int t) { f.thin_wgrad(g, t * kColumns, std::min((t + 1) * kColumns, C)); });
}

}  // namespace msl
