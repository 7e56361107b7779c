// Runs every CPU kernel on buffers of exactly their size, with odd shapes, all instruction sets and 1 to 3 threads,
// under the sanitizers of sanitize.sh. Results are checked for being finite; the Python tests check their values.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ops.h"

using namespace msl;

namespace {

struct Buffer {
  std::vector<char> bytes;
  void *p() { return bytes.data(); }
  float *f() { return reinterpret_cast<float *>(bytes.data()); }
  int32_t *i() { return reinterpret_cast<int32_t *>(bytes.data()); }
};

uint32_t g_state = 1;
float next_value() {
  g_state = g_state * 1664525u + 1013904223u;
  return static_cast<float>(static_cast<int32_t>(g_state)) * (1.0f / 2147483648.0f);
}

// n values of type dt, uniform in (-1, 1)
Buffer values(int dt, i64 n) {
  Buffer b{std::vector<char>(static_cast<size_t>(n) * dtype_size(dt))};
  for (i64 i = 0; i < n; ++i) {
    const float x = next_value();
    if (dt == kF32) {
      b.f()[i] = x;
    } else {
      reinterpret_cast<uint16_t *>(b.p())[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, x) >> 16);
    }
  }
  return b;
}
Buffer labels(i64 n, i64 below) {
  Buffer b{std::vector<char>(static_cast<size_t>(n) * 4)};
  for (i64 i = 0; i < n; ++i) b.i()[i] = static_cast<int32_t>((next_value() + 1) * 0.5f * static_cast<float>(below));
  return b;
}

void finite(const char *what, int dt, Buffer &b) {
  const size_t n = b.bytes.size() / dtype_size(dt);
  for (size_t i = 0; i < n; ++i) {
    const uint16_t half = dt == kF32 ? 0 : reinterpret_cast<uint16_t *>(b.p())[i];
    const float x = dt == kF32 ? b.f()[i] : __builtin_bit_cast(float, static_cast<uint32_t>(half) << 16);
    if (!std::isfinite(x)) {
      std::printf("%s: value %zu is not finite\n", what, i);
      std::exit(1);
    }
  }
}

void linear(int dt, i64 M, i64 N, i64 K) {
  Buffer x = values(dt, M * K), w = values(dt, N * K), b = values(dt, N), y = values(dt, M * N), dx = values(dt, M * K),
         d = values(kF32, N * K), db = values(kF32, N);
  linear_fwd(dt, x.p(), w.p(), b.p(), y.p(), M, N, K);
  linear_fwd(dt, x.p(), w.p(), nullptr, y.p(), M, N, K);
  linear_dgrad(dt, y.p(), w.p(), dx.p(), M, N, K);
  for (bool accumulate : {false, true}) linear_wgrad(dt, y.p(), x.p(), d.f(), M, N, K, accumulate);
  op_bias_grad(dt, y.p(), db.f(), M, N, true);
  finite("linear", dt, y);
  finite("dgrad", dt, dx);
  finite("wgrad", kF32, d);
}

void low_rank(int dt, i64 M, i64 K, i64 N, i64 rank) {
  Buffer x = values(dt, M * K), a = values(dt, rank * K), b = values(dt, N * rank), y = values(dt, M * N),
         dx = values(dt, M * K), hidden = values(dt, M * rank);
  op_low_rank(dt, x.p(), a.p(), true, b.p(), true, 0.5f, y.p(), hidden.p(), M, K, N, rank);
  op_low_rank(dt, y.p(), b.p(), false, a.p(), false, 0.5f, dx.p(), hidden.p(), M, N, K, rank);
  finite("low rank", dt, y);
  finite("low rank's gradient", dt, dx);
}

void rows(int dt, i64 S, i64 H) {
  Buffer x = values(dt, S * H), g = values(dt, S * H), w = values(dt, H), y = values(dt, S * H), rstd = values(kF32, S),
         d = values(kF32, H), h = values(dt, S * 2 * H), dh = values(dt, S * 2 * H);
  Buffer sum = values(dt, S * H);
  op_rms_norm_fwd(dt, x.p(), nullptr, w.p(), nullptr, y.p(), rstd.f(), S, H, 1e-5f);
  op_rms_norm_bwd(dt, g.p(), x.p(), w.p(), rstd.f(), nullptr, y.p(), d.f(), S, H, true);
  op_rms_norm_fwd(dt, x.p(), g.p(), w.p(), sum.p(), y.p(), rstd.f(), S, H, 1e-5f);
  op_rms_norm_bwd(dt, g.p(), sum.p(), w.p(), rstd.f(), x.p(), y.p(), d.f(), S, H, false);
  finite("rms_norm", dt, y);
  op_swiglu_fwd(dt, h.p(), y.p(), S, H);
  op_swiglu_bwd(dt, g.p(), h.p(), dh.p(), S, H);
  finite("swiglu", dt, dh);
  op_add(dt, x.p(), g.p(), y.p(), S * H);
  Buffer ids = labels(S, H + 3), stats = values(kF32, 3 * S), lse = values(kF32, S), grad = values(kF32, S),
         table = values(dt, H * H), sums = values(kF32, H * H);
  op_ce_stats(dt, x.p(), ids.i(), stats.f(), S, H, 1);
  op_ce_grad(dt, x.p(), ids.i(), lse.f(), grad.f(), y.p(), S, H, 1);
  finite("cross entropy", dt, y);
  op_embedding_fwd(dt, table.p(), ids.i(), y.p(), S, H, H, 1);
  op_embedding_wgrad(dt, g.p(), ids.i(), sums.f(), S, H, H, 1, false);
  finite("embedding", kF32, sums);
}

void rotary(int dt, i64 S, i64 B, i64 G, i64 n, i64 D, i64 R) {
  const i64 T = S * B;
  Buffer qkv = values(dt, T * G * (n + 2) * D), q = values(dt, T * G * n * D), k = values(dt, T * G * D),
         v = values(dt, T * G * D), cos = values(kF32, S * R / 2), sin = values(kF32, S * R / 2),
         y = values(dt, T * G * n * D);
  op_qkv_rope_fwd(dt, qkv.p(), q.p(), k.p(), v.p(), cos.f(), sin.f(), S, B, G, n, D, R);
  op_qkv_rope_bwd(dt, q.p(), k.p(), v.p(), qkv.p(), cos.f(), sin.f(), S, B, G, n, D, R);
  op_rope(dt, q.p(), y.p(), cos.f(), sin.f(), S, B, G * n, D, R, true);
  finite("rope", dt, y);
}

void optimizer(int dt, i64 n) {
  Buffer p = values(dt, n), w = values(kF32, n), g = values(kF32, n), m = values(kF32, n), v = values(kF32, n);
  for (i64 i = 0; i < n; ++i) v.f()[i] = std::fabs(v.f()[i]);
  const AdamW settings{1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1e-2f, 4.0f, 1.0f};
  op_adamw(dt, p.p(), w.f(), g.f(), m.f(), v.f(), n, settings);
  finite("adamw", kF32, w);
  if (!std::isfinite(op_sum_squares(w.f(), n))) std::exit(1);
}

void attend(int dt, i64 Sq, i64 Sk, i64 B, i64 G, i64 n, i64 D, i64 q_start, i64 k_start, std::vector<i64> cu) {
  const i64 N = G * n;
  Buffer q = values(dt, Sq * B * N * D), k = values(dt, Sk * B * G * D), v = values(dt, Sk * B * G * D),
         o = values(dt, Sq * B * N * D), g = values(dt, Sq * B * N * D), dq = values(dt, Sq * B * N * D),
         dk = values(dt, Sk * B * G * D), dv = values(dt, Sk * B * G * D), lse = values(kF32, B * N * Sq);
  Attention a{};
  a.dt = dt;
  a.B = B, a.N = N, a.G = G, a.Sq = Sq, a.Sk = Sk, a.D = D;
  a.q_row = B * N * D, a.kv_row = B * G * D;
  a.scale = 0.3f;
  a.q = q.p(), a.k = k.p(), a.v = v.p(), a.out_w = o.p(), a.lse = lse.f();
  const i64 *borders = cu.empty() ? nullptr : cu.data();
  const i64 segments = cu.empty() ? 0 : static_cast<i64>(cu.size()) - 1;
  op_attention_fwd(a, q_start, k_start, borders, segments);
  finite("attention", dt, o);
  a.out = o.p(), a.grad = g.p(), a.dq = dq.p(), a.dk = dk.p(), a.dv = dv.p();
  op_attention_bwd(a, q_start, k_start, borders, segments);
  finite("dq", dt, dq);
  finite("dk", dt, dk);
  finite("dv", dt, dv);
}

// Sequence i has past `pasts[i]` and counts[i] new tokens; the last block of the last slab ends with the memory.
void attend_cached(int dt, i64 G, i64 n, i64 D, bool keep, std::vector<i64> pasts, std::vector<i64> counts) {
  const i64 block = 13, per_slab = 5;
  std::vector<i64> edges = {0};
  std::vector<std::vector<i64>> tables(pasts.size());
  std::vector<Buffer> keys, values_;
  i64 next = 0;
  for (size_t i = 0; i < pasts.size(); ++i) {
    edges.push_back(edges.back() + counts[i]);
    const i64 rows = pasts[i] + (keep ? counts[i] : 0);
    for (i64 r = 0; r < rows; r += block) tables[i].push_back(next++);
  }
  for (i64 b = 0; b < next || b == 0; b += per_slab) {
    keys.push_back(values(dt, per_slab * block * G * D));
    values_.push_back(values(dt, per_slab * block * G * D));
  }
  for (auto &table : tables) {  // backwards, so that the last block is a full one
    for (i64 &b : table) b = static_cast<i64>(keys.size()) * per_slab - 1 - b;
  }
  const i64 T = edges.back();
  Buffer q = values(dt, T * G * n * D), k = values(dt, T * G * D), v = values(dt, T * G * D),
         out = values(dt, T * G * n * D);
  Cached a{dt,    G * n,   G,  D, block,  per_slab, 0.3f, keep, q.p(), k.p(), v.p(),
           out.p(), {}, {}, tables, edges, pasts};
  for (size_t i = 0; i < keys.size(); ++i) {
    a.keys.push_back(keys[i].p());
    a.values.push_back(values_[i].p());
  }
  op_attention_cached(a);
  finite("cached attention", dt, out);
}

void everything(int dt) {
  for (i64 M : {0, 1, 3, 6, 16, 33, 70, 150}) {
    for (i64 N : {1, 31, 200}) {
      for (i64 K : {0, 1, 47, 600}) linear(dt, M, N, K);
    }
    for (i64 rank : {1, 16, 21}) {
      for (i64 K : {1, 47, 600}) low_rank(dt, M, K, 290, rank);
    }
    for (i64 H : {1, 17, 130}) rows(dt, M, H);
  }
  for (i64 D : {2, 7, 64}) {
    rotary(dt, 19, 2, 2, 3, D, D / 2 * 2);
    rotary(dt, 1, 1, 1, 1, D, 0);
  }
  for (i64 n : {0, 1, 63, 70001}) optimizer(dt, n);
  for (i64 D : {1, 16, 20, 64, 128}) {
    for (i64 S : {1, 2, 47, 65, 300}) {
      attend(dt, S, S, 1, 2, 2, D, 0, 0, {});
      attend(dt, S, 77, 2, 1, 3, D, 100, 0, {});
      attend(dt, S, 77, 1, 1, 1, D, 0, 40, {});
      attend(dt, S, S, 1, 1, 2, D, 0, 0, {0, 1, 2, 40, 40, 60, 250});
    }
    attend(dt, 0, 5, 1, 1, 1, D, 0, 0, {});
    attend(dt, 5, 0, 1, 1, 1, D, 0, 0, {});
    attend(dt, 1, 1300, 1, 2, 4, D, 1299, 0, {});
    for (bool keep : {true, false}) {
      attend_cached(dt, 2, 5, D, keep, {0, 3, 700, 1}, {1, 1, 1, 1});
      attend_cached(dt, 1, 2, D, keep, {0, 30, 9}, {3, 1, 50});
    }
  }
}

}  // namespace

int main() {
  int runs = 0;
  for (const std::string &name : isa_names()) {
    select_isa(name.c_str());
    for (int threads = 1; threads <= 3; ++threads) {
      set_num_threads(threads);
      everything(kF32);
      everything(kBF16);
      ++runs;
    }
    optimizer(kF16, 1001);
  }
  std::printf("%d passed, 0 failed\n", runs);
  return 0;
}
