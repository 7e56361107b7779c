// Splits each kernel into tasks. The border between tasks never changes a result: rows are independent, and where a sum
// crosses rows its partial sums are cut at fixed places, not at thread borders.
#include "ops.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

namespace msl {
namespace {

// Rows per task such that a task touches at least ~16k values; smaller work is not worth waking a thread.
i64 row_grain(i64 row_values) { return std::max<i64>(1, 16384 / std::max<i64>(1, row_values)); }

const char *at(const void *p, i64 elements, int dt) {
  return static_cast<const char *>(p) + elements * static_cast<i64>(dtype_size(dt));
}
char *at(void *p, i64 elements, int dt) { return static_cast<char *>(p) + elements * static_cast<i64>(dtype_size(dt)); }

// The instruction sets that this processor has, each including those before it.
std::vector<const Isa *> available() {
  std::vector<const Isa *> found = {isa_base()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return found;
  found.push_back(isa_avx2());
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512cd") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return found;
  }
  found.push_back(isa_avx512());
  if (!__builtin_cpu_supports("avx512bf16")) return found;
  found.push_back(isa_avx512_bf16());
  // AMX needs the instructions (CPUID leaf 7: bits 22 and 24 of EDX) and the kernel's leave to use the tile registers,
  // which a process asks for once.
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBF16 = 1u << 22, kTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBF16) != 0 && (d & kTile) != 0 &&
      syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) {
    found.push_back(isa_amx());
  }
#endif
  return found;
}

const Isa *&current() {
  static const Isa *chosen = available().back();
  return chosen;
}

}  // namespace

const Isa &isa() { return *current(); }

bool select_isa(const char *name) {
  for (const Isa *candidate : available()) {
    if (std::strcmp(candidate->name, name) == 0) {
      current() = candidate;
      return true;
    }
  }
  return false;
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa *one : available()) names.emplace_back(one->name);
  return names;
}

void op_zero(float *x, i64 n) {
  parallel_elements(n, [&](i64 b, i64 e) { std::memset(x + b, 0, static_cast<size_t>(e - b) * sizeof(float)); });
}

void op_bias_grad(int dt, const void *g, float *main_grad, i64 rows, i64 N, bool accumulate) {
  const Isa &f = isa();
  if (!accumulate) op_zero(main_grad, N);
  parallel_for((N + 63) / 64, row_grain(rows * 64),
               [&](i64 b, i64 e) { f.bias_grad(dt, g, main_grad, rows, N, b * 64, std::min(e * 64, N)); });
}

void op_rms_norm_fwd(int dt, const void *x, const void *branch, const void *w, void *sum, void *y, float *rstd,
                     i64 rows, i64 H, float eps) {
  const Isa &f = isa();
  parallel_for(rows, row_grain(H), [&](i64 b, i64 e) {
    f.rms_norm_fwd(dt, at(x, b * H, dt), branch != nullptr ? at(branch, b * H, dt) : nullptr, w,
                   sum != nullptr ? at(sum, b * H, dt) : nullptr, at(y, b * H, dt), rstd + b, e - b, H, eps);
  });
}

void op_rms_norm_bwd(int dt, const void *g, const void *x, const void *w, const float *rstd, const void *d_sum,
                     void *dx, float *main_grad, i64 rows, i64 H, bool accumulate) {
  if (!accumulate) op_zero(main_grad, H);
  if (rows == 0 || H == 0) return;
  const Isa &f = isa();
  // at most 16 partial sums of the weight gradient, cut by the number of rows alone
  const i64 parts = std::min<i64>(16, std::max<i64>(1, rows * H / 16384));
  Scratch scratch(Scratch::padded(sizeof(float) * static_cast<size_t>(parts * H)));
  float *sums = scratch.take<float>(static_cast<size_t>(parts * H));
  run_tasks(static_cast<int>(parts), [&](int t) {
    const i64 b = rows * t / parts, e = rows * (t + 1) / parts;
    float *dw = sums + t * H;
    std::memset(dw, 0, sizeof(float) * static_cast<size_t>(H));
    f.rms_norm_bwd(dt, at(g, b * H, dt), at(x, b * H, dt), w, rstd + b,
                   d_sum != nullptr ? at(d_sum, b * H, dt) : nullptr, at(dx, b * H, dt), dw, e - b, H);
  });
  for (i64 p = 0; p < parts; ++p) f.accumulate(kF32, main_grad, sums + p * H, H);
}

void op_swiglu_fwd(int dt, const void *x, void *y, i64 rows, i64 F) {
  const Isa &f = isa();
  parallel_for(rows, row_grain(2 * F), [&](i64 b, i64 e) { f.swiglu_fwd(dt, x, y, b, e, F); });
}

void op_swiglu_bwd(int dt, const void *g, const void *x, void *dx, i64 rows, i64 F) {
  const Isa &f = isa();
  parallel_for(rows, row_grain(2 * F), [&](i64 b, i64 e) { f.swiglu_bwd(dt, g, x, dx, b, e, F); });
}

void op_rope(int dt, const void *x, void *y, const float *cos, const float *sin, i64 S, i64 B, i64 N, i64 D, i64 R,
             bool inverse) {
  const Isa &f = isa();
  parallel_for(S * B, row_grain(N * D), [&](i64 b, i64 e) { f.rope(dt, x, y, cos, sin, b, e, B, N, D, R, inverse); });
}

void op_qkv_rope_fwd(int dt, const void *qkv, void *q, void *k, void *v, const float *cos, const float *sin, i64 S,
                     i64 B, i64 G, i64 n, i64 D, i64 R) {
  const Isa &f = isa();
  parallel_for(S * B, row_grain(G * (n + 2) * D),
               [&](i64 b, i64 e) { f.qkv_rope_fwd(dt, qkv, q, k, v, cos, sin, b, e, B, G, n, D, R); });
}

void op_qkv_rope_bwd(int dt, const void *dq, const void *dk, const void *dv, void *dqkv, const float *cos,
                     const float *sin, i64 S, i64 B, i64 G, i64 n, i64 D, i64 R) {
  const Isa &f = isa();
  parallel_for(S * B, row_grain(G * (n + 2) * D),
               [&](i64 b, i64 e) { f.qkv_rope_bwd(dt, dq, dk, dv, dqkv, cos, sin, b, e, B, G, n, D, R); });
}

void op_ce_stats(int dt, const void *logits, const int32_t *labels, float *out, i64 rows, i64 V, i64 start) {
  const Isa &f = isa();
  parallel_for(rows, row_grain(V), [&](i64 b, i64 e) { f.ce_stats(dt, logits, labels, out, b, e, V, start); });
}

void op_ce_grad(int dt, const void *logits, const int32_t *labels, const float *lse, const float *grad, void *out,
                i64 rows, i64 V, i64 start) {
  const Isa &f = isa();
  parallel_for(rows, row_grain(V),
               [&](i64 b, i64 e) { f.ce_grad(dt, logits, labels, lse, grad, out, b, e, V, start); });
}

void op_embedding_fwd(int dt, const void *weight, const int32_t *ids, void *out, i64 tokens, i64 V, i64 H, i64 start) {
  const size_t row = static_cast<size_t>(H) * dtype_size(dt);
  parallel_for(tokens, row_grain(H), [&](i64 b, i64 e) {
    for (i64 t = b; t < e; ++t) {
      const i64 id = static_cast<i64>(ids[t]) - start;
      if (id >= 0 && id < V) {
        std::memcpy(at(out, t * H, dt), at(weight, id * H, dt), row);
      } else {
        std::memset(at(out, t * H, dt), 0, row);
      }
    }
  });
}

void op_embedding_wgrad(int dt, const void *g, const int32_t *ids, float *main_grad, i64 tokens, i64 V, i64 H,
                        i64 start, bool accumulate) {
  const Isa &f = isa();
  if (!accumulate) op_zero(main_grad, V * H);
  parallel_for((H + 63) / 64, row_grain(tokens * 64), [&](i64 b, i64 e) {
    f.embedding_wgrad(dt, g, ids, main_grad, tokens, V, H, b * 64, std::min(e * 64, H), start);
  });
}

void op_adamw(int dt, void *param, float *master, const float *grad, float *m, float *v, i64 n, const AdamW &p) {
  const Isa &f = isa();
  parallel_elements(n, [&](i64 b, i64 e) {
    // the same memory must stay recognisable as the same
    void *out = param == static_cast<void *>(master) ? static_cast<void *>(master + b) : at(param, b, dt);
    f.adamw(dt, out, master + b, grad + b, m + b, v + b, e - b, p);
  });
}

double op_sum_squares(const float *x, i64 n) {
  const Isa &f = isa();
  constexpr i64 kBlock = 1 << 16;  // partial sums of fixed blocks, added in order
  const i64 blocks = (n + kBlock - 1) / kBlock;
  std::vector<double> sums(static_cast<size_t>(blocks));
  parallel_for(blocks, 1, [&](i64 b, i64 e) {
    for (i64 i = b; i < e; ++i)
      sums[static_cast<size_t>(i)] = f.sum_squares(x + i * kBlock, std::min(kBlock, n - i * kBlock));
  });
  double total = 0;
  for (double s : sums) total += s;
  return total;
}

void op_add(int dt, const void *x, const void *y, void *out, i64 n) {
  const Isa &f = isa();
  parallel_elements(n, [&](i64 b, i64 e) { f.add(dt, at(x, b, dt), at(y, b, dt), at(out, b, dt), e - b); });
}

}  // namespace msl
