// Attention over caches: one query row of each of many sequences in one set of tasks, longer pieces one by one.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "ops.h"

namespace msl {
namespace {

constexpr i64 kChunk = 512;  // keys of one partial result: fixed, so that sums have one order

struct Piece {
  i64 b, g, from, to;
};

char *at(void *p, i64 elements, int dt) { return static_cast<char *>(p) + elements * static_cast<i64>(dtype_size(dt)); }
const char *at(const void *p, i64 elements, int dt) {
  return static_cast<const char *>(p) + elements * static_cast<i64>(dtype_size(dt));
}

// f(r, count) for rows [from, to) of a cache, cut where its blocks end
template <class F>
void each_run(i64 from, i64 to, i64 block, const F &f) {
  for (i64 r = from, count; r < to; r += count) {
    count = std::min(to - r, block - r % block);
    f(r, count);
  }
}

}  // namespace

void op_attention_decode(const Decode &a) {
  const Isa &f = isa();
  const i64 n = a.N / a.G, Dp = round_up(a.D, f.lanes), width = n * (Dp + 2);
  std::vector<Piece> pieces;
  std::vector<i64> first(static_cast<size_t>(a.B) + 1);  // pieces of sequence b, group by group
  i64 keys = 0;
  for (i64 b = 0; b < a.B; ++b) {
    first[static_cast<size_t>(b)] = static_cast<i64>(pieces.size());
    for (i64 g = 0; g < a.G; ++g) {
      for (i64 j = a.lo[b]; j < a.hi[b]; j += kChunk) pieces.push_back({b, g, j, std::min(j + kChunk, a.hi[b])});
    }
    keys += a.G * (a.hi[b] - a.lo[b]);
  }
  first[static_cast<size_t>(a.B)] = static_cast<i64>(pieces.size());
  const i64 count = static_cast<i64>(pieces.size()), mean = count > 0 ? keys / count + 1 : 1;
  Scratch scratch(Scratch::padded(sizeof(float) * static_cast<size_t>(count * width)));
  float *parts = scratch.take<float>(static_cast<size_t>(count * width));
  parallel_for(count, std::max<i64>(1, 16384 / (mean * n * a.D)), [&](i64 t0, i64 t1) {
    for (i64 t = t0; t < t1; ++t) {
      const Piece &p = pieces[static_cast<size_t>(t)];
      f.attn_decode(a, p.b, p.g, p.from, p.to, parts + t * width);
    }
  });
  parallel_for(a.B * a.N, std::max<i64>(1, 16384 / a.D), [&](i64 h0, i64 h1) {
    std::vector<float> row(static_cast<size_t>(a.D));
    for (i64 head = h0; head < h1; ++head) {
      const i64 b = head / a.N, h = head % a.N;
      const i64 chunks = (first[static_cast<size_t>(b) + 1] - first[static_cast<size_t>(b)]) / a.G;
      const float *p = parts + (first[static_cast<size_t>(b)] + h / n * chunks) * width + h % n * (Dp + 2);
      float m = -INFINITY, sum = 0;
      for (i64 c = 0; c < chunks; ++c) m = p[c * width + Dp] > m ? p[c * width + Dp] : m;
      std::fill(row.begin(), row.end(), 0.0f);
      for (i64 c = 0; c < chunks; ++c) {
        const float w = std::exp(p[c * width + Dp] - m);
        sum += w * p[c * width + Dp + 1];
        for (i64 d = 0; d < a.D; ++d) row[static_cast<size_t>(d)] += w * p[c * width + d];
      }
      if (chunks > 0) f.scale(row.data(), 1.0f / sum, a.D);
      f.from_float(a.dt, row.data(), at(a.out, head * a.D, a.dt), a.D);
      if (a.lse != nullptr) a.lse[head] = chunks > 0 ? m + std::log(sum) : -INFINITY;
    }
  });
}

void op_attention_cached(const Cached &a) {
  const i64 kv_row = a.G * a.D, q_row = a.N * a.D, n = static_cast<i64>(a.lengths.size());
  const size_t row_bytes = static_cast<size_t>(kv_row) * dtype_size(a.dt);
  const auto tokens = [&](i64 i) { return a.edges[static_cast<size_t>(i) + 1] - a.edges[static_cast<size_t>(i)]; };
  std::vector<std::vector<void *>> keys(static_cast<size_t>(n)), values(static_cast<size_t>(n));
  for (size_t i = 0; i < keys.size(); ++i) {
    for (const i64 b : a.tables[i]) {
      const size_t slab = static_cast<size_t>(b / a.per_slab);
      keys[i].push_back(at(a.keys[slab], b % a.per_slab * a.block * kv_row, a.dt));
      values[i].push_back(at(a.values[slab], b % a.per_slab * a.block * kv_row, a.dt));
    }
  }
  if (a.keep) {
    for (i64 i = 0; i < n; ++i) {
      const size_t s = static_cast<size_t>(i);
      each_run(a.lengths[s], a.lengths[s] + tokens(i), a.block, [&](i64 r, i64 count) {
        const i64 from = (a.edges[s] + r - a.lengths[s]) * kv_row, b = r / a.block, to = r % a.block * kv_row;
        const size_t bytes = static_cast<size_t>(count) * row_bytes;
        std::memcpy(at(keys[s][static_cast<size_t>(b)], to, a.dt), at(a.k, from, a.dt), bytes);
        std::memcpy(at(values[s][static_cast<size_t>(b)], to, a.dt), at(a.v, from, a.dt), bytes);
      });
    }
  }
  bool single = a.keep;
  for (i64 i = 0; i < n; ++i) single = single && tokens(i) == 1;
  if (single) {
    std::vector<i64> lo(static_cast<size_t>(n)), hi(a.lengths);
    std::vector<const void *const *> k_blocks, v_blocks;
    for (size_t i = 0; i < keys.size(); ++i) {
      ++hi[i];
      k_blocks.push_back(keys[i].data());
      v_blocks.push_back(values[i].data());
    }
    op_attention_decode({a.dt, n, a.N, a.G, a.D, kv_row, a.block, a.scale, lo.data(), hi.data(), a.q, k_blocks.data(),
                         v_blocks.data(), a.out, nullptr});
    return;
  }
  std::vector<char> joined;
  std::vector<float> lse;
  for (i64 i = 0; i < n; ++i) {
    const size_t s = static_cast<size_t>(i);
    const i64 past = a.lengths[s], fresh = tokens(i), first = a.edges[s];
    Attention one{};
    one.dt = a.dt;
    one.B = 1, one.N = a.N, one.G = a.G, one.D = a.D;
    one.Sq = fresh, one.Sk = past + fresh;
    one.q_row = q_row, one.kv_row = kv_row;
    one.scale = a.scale;
    one.q = at(a.q, first * q_row, a.dt);
    one.out_w = at(a.out, first * q_row, a.dt);
    one.k = at(a.k, first * kv_row, a.dt);
    one.v = at(a.v, first * kv_row, a.dt);
    if (past > 0) {  // a product reads every key several times: one behind the other is worth a copy
      const size_t half = static_cast<size_t>(past + fresh) * row_bytes;
      if (joined.size() < 2 * half) joined.resize(2 * half);
      char *k = joined.data(), *v = k + half;
      each_run(0, past, a.block, [&](i64 r, i64 count) {
        const size_t b = static_cast<size_t>(r / a.block), bytes = static_cast<size_t>(count) * row_bytes;
        std::memcpy(at(k, r * kv_row, a.dt), keys[s][b], bytes);
        std::memcpy(at(v, r * kv_row, a.dt), values[s][b], bytes);
      });
      std::memcpy(at(k, past * kv_row, a.dt), one.k, static_cast<size_t>(fresh) * row_bytes);
      std::memcpy(at(v, past * kv_row, a.dt), one.v, static_cast<size_t>(fresh) * row_bytes);
      one.k = k;
      one.v = v;
    }
    lse.resize(std::max(lse.size(), static_cast<size_t>(a.N * fresh)));
    one.lse = lse.data();
    op_attention_fwd(one, past, 0, nullptr, 0);
  }
}

}  // namespace msl
