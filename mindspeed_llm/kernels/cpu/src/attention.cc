// Attention: mask intervals, packing and the split into tasks (the arithmetic is in attention.inc).
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops.h"

namespace msl {
namespace {

// Keys [lo, hi) that query row i may see: from the start of its packed segment, up to its own position.
struct Mask {
  std::vector<i64> lo, hi;

  Mask(i64 Sq, i64 Sk, i64 q_start, i64 k_start, const i64 *cu, i64 segments)
      : lo(static_cast<size_t>(Sq)), hi(static_cast<size_t>(Sq)) {
    i64 segment = 0;
    for (i64 i = 0; i < Sq; ++i) {
      const i64 position = q_start + i;
      i64 first = 0;
      if (cu != nullptr) {
        while (segment < segments && cu[segment + 1] <= position) ++segment;
        first = cu[segment] - k_start;
      }
      const i64 last = position - k_start + 1;
      hi[static_cast<size_t>(i)] = std::min(std::max<i64>(last, 0), Sk);
      lo[static_cast<size_t>(i)] = std::min(std::max<i64>(first, 0), hi[static_cast<size_t>(i)]);
    }
  }
};

// Sets paddings and strides; true when the tile kernels are to be used.
bool pad(Attention *a, const Isa &f) {
  const bool tiles = f.tiles_fwd != nullptr;
  const i64 tile_floats = a->dt == kF32 ? 3 : 1;  // of every two values: fp32 is three bf16 parts
  a->Dp = round_up(a->D, tiles ? 32 : f.lanes);
  a->Skp = round_up(a->Sk, tiles ? 32 : f.panel);
  a->kt_stride = tiles ? a->Skp * a->Dp * tile_floats / 2 : a->Skp * a->D;
  a->kn_stride = tiles ? a->kt_stride : a->Skp * round_up(a->D, f.panel);
  a->dk_scale = tiles ? a->scale : 1.0f;
  return tiles;
}

// One query row of each batch entry.
void decode(const Attention &a) {
  const size_t batch = static_cast<size_t>(a.B);
  std::vector<const void *> k(batch), v(batch);
  std::vector<const void *const *> k_blocks(batch), v_blocks(batch);  // all keys of an entry are one block
  const std::vector<i64> lo(batch, a.lo[0]), hi(batch, a.hi[0]);
  for (size_t b = 0; b < batch; ++b) {
    const size_t bytes = b * static_cast<size_t>(a.G * a.D) * dtype_size(a.dt);
    k[b] = static_cast<const char *>(a.k) + bytes;
    v[b] = static_cast<const char *>(a.v) + bytes;
    k_blocks[b] = &k[b];
    v_blocks[b] = &v[b];
  }
  op_attention_decode({a.dt, a.B, a.N, a.G, a.D, a.kv_row, std::max<i64>(1, a.Sk), a.scale, lo.data(), hi.data(), a.q,
                       k_blocks.data(), v_blocks.data(), a.out_w, a.lse});
}

}  // namespace

void op_attention_fwd(Attention a, i64 q_start, i64 k_start, const i64 *cu_seqlens, i64 segments) {
  if (a.Sq == 0 || a.B == 0 || a.N == 0) return;
  const Mask mask(a.Sq, a.Sk, q_start, k_start, cu_seqlens, segments);
  a.lo = mask.lo.data();
  a.hi = mask.hi.data();
  if (a.Sq == 1) return decode(a);
  const Isa &f = isa();
  const bool tiles = pad(&a, f);
  const size_t groups = static_cast<size_t>(a.B * a.G);
  const size_t kt = groups * static_cast<size_t>(a.kt_stride), kn = groups * static_cast<size_t>(a.kn_stride);
  Scratch scratch(Scratch::padded(kt * sizeof(float)) + Scratch::padded(kn * sizeof(float)));
  a.kt = scratch.take<float>(kt);
  a.vn = scratch.take<float>(kn);
  parallel_for(a.B * a.G, std::max<i64>(1, 8192 / (a.Sk * a.D + 1)), [&](i64 b, i64 e) {
    for (i64 bg = b; bg < e; ++bg) (tiles ? f.tiles_pack : f.attn_pack)(a, bg, false);
  });
  const i64 height = tiles ? kTileQueriesFwd : kQueryBlock, blocks = (a.Sq + height - 1) / height, heads = a.B * a.N,
            tasks = blocks * heads;
  // long blocks first: the last rows of a causal mask see the most keys
  const auto block = [&](i64 t) {
    const i64 head = t % heads, row0 = (blocks - 1 - t / heads) * height;
    (tiles ? f.tiles_fwd : f.attn_fwd)(a, head / a.N, head % a.N, row0, std::min(row0 + height, a.Sq));
  };
  if (a.Sq * a.Sk * a.D * heads < 131072) {
    for (i64 t = 0; t < tasks; ++t) block(t);
  } else {
    run_tasks(static_cast<int>(tasks), [&](int t) { block(t); });
  }
}

void op_attention_bwd(Attention a, i64 q_start, i64 k_start, const i64 *cu_seqlens, i64 segments) {
  const size_t element = dtype_size(a.dt);
  if (a.B == 0 || a.N == 0) return;
  if (a.Sq == 0 || a.Sk == 0) {
    if (a.Sq > 0) std::memset(a.dq, 0, static_cast<size_t>(a.Sq * a.q_row) * element);
    if (a.Sk > 0) std::memset(a.dk, 0, static_cast<size_t>(a.Sk * a.kv_row) * element);
    if (a.Sk > 0) std::memset(a.dv, 0, static_cast<size_t>(a.Sk * a.kv_row) * element);
    return;
  }
  const Mask mask(a.Sq, a.Sk, q_start, k_start, cu_seqlens, segments);
  a.lo = mask.lo.data();
  a.hi = mask.hi.data();
  const Isa &f = isa();
  // Heads of a group share dK and dV. Enough units for 16 threads, as few accumulators as that allows: the number
  // depends on the shape alone, so the sums have one order.
  const i64 n = a.N / a.G, wanted = std::max<i64>(1, std::min(n, (16 + a.B * a.G - 1) / (a.B * a.G)));
  a.heads_per_unit = (n + wanted - 1) / wanted;
  a.split = (n + a.heads_per_unit - 1) / a.heads_per_unit;
  const bool tiles = pad(&a, f);
  const size_t groups = static_cast<size_t>(a.B * a.G);
  const size_t kt = groups * static_cast<size_t>(a.kt_stride), kn = groups * static_cast<size_t>(a.kn_stride);
  const size_t acc = groups * static_cast<size_t>(2 * a.split * a.Skp * a.Dp);
  Scratch scratch(2 * Scratch::padded(kt * sizeof(float)) + Scratch::padded(kn * sizeof(float)) +
                  Scratch::padded(acc * sizeof(float)));
  a.kt = scratch.take<float>(kt);
  a.vt = scratch.take<float>(kt);
  a.kn = scratch.take<float>(kn);
  a.acc = scratch.take<float>(acc);
  parallel_for(a.B * a.G, std::max<i64>(1, 8192 / (a.Sk * a.D + 1)), [&](i64 b, i64 e) {
    for (i64 bg = b; bg < e; ++bg) (tiles ? f.tiles_pack : f.attn_pack)(a, bg, true);
  });
  const i64 units = a.B * a.G * a.split;
  parallel_for(units, a.Sq * a.Sk * a.D * a.heads_per_unit < 65536 ? units : 1, [&](i64 b, i64 e) {
    for (i64 u = b; u < e; ++u) (tiles ? f.tiles_bwd : f.attn_bwd)(a, u / a.split, u % a.split);
  });
  parallel_for(a.Sk, std::max<i64>(1, 16384 / (a.kv_row * (a.split + 1) + 1)), [&](i64 b, i64 e) {
    for (i64 bg = 0; bg < a.B * a.G; ++bg) f.attn_bwd_finish(a, bg, b, e);
  });
}

}  // namespace msl
