// Linear layers. A few rows (decoding) by our own loop; on AMX by our own tiles, which measured faster than oneDNN
// 3.10.1 in both types; else by oneDNN matmul primitives, cached by shape, run on our thread pool.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "onednn_c.h"
#include "ops.h"

namespace msl {
namespace {

void check(int status, const char *what) {
  if (status != dnnl_success)
    throw std::runtime_error(std::string("oneDNN: ") + what + " failed with status " + std::to_string(status));
}

struct Threads : dnnl::threadpool_interop::threadpool_iface {
  int get_num_threads() const override { return serial ? 1 : num_threads(); }
  bool serial = false;
  bool get_in_parallel() const override { return in_worker(); }
  void parallel_for(int n, const std::function<void(int, int)> &fn) override {
    run_tasks(n, [&](int i) { fn(i, n); });
  }
  uint64_t get_flags() const override { return 0; }
  void wait() override {}
};

enum Kind { kForward, kForwardBias, kDgrad, kWgrad, kWgradAdd };

struct Matmul {
  dnnl_primitive_t primitive = nullptr;
  dnnl_memory_t src = nullptr, weights = nullptr, bias = nullptr, dst = nullptr, scratchpad = nullptr;
  size_t scratch_bytes = 0;
};

using Key = std::tuple<int, int, i64, i64, i64, int>;

class Gemm {
 public:
  Gemm() {
    check(dnnl_engine_create(&engine_, dnnl_cpu, 0), "dnnl_engine_create");
    check(dnnl_threadpool_interop_stream_create(&stream_, engine_, &threads_), "stream_create");
  }

  void run(Kind kind, int dt, i64 M, i64 N, i64 K, const void *src, const void *weights, const void *bias, void *dst) {
    std::lock_guard<std::mutex> hold(mutex_);
    // When the result is small and the depth long, oneDNN gives threads pieces of the depth, whose sums then depend on
    // the number of threads.
    threads_.serial = (kind == kWgrad || kind == kWgradAdd) && N * K <= 128 * 128;
    Matmul &m = get(kind, dt, M, N, K);
    Scratch scratch(m.scratch_bytes);
    set(m.src, src);
    set(m.weights, weights);
    set(m.dst, dst);
    dnnl_exec_arg_t args[5] = {{DNNL_ARG_SRC, m.src}, {DNNL_ARG_WEIGHTS, m.weights}, {DNNL_ARG_DST, m.dst}};
    int count = 3;
    if (m.bias != nullptr) {
      set(m.bias, bias);
      args[count++] = {DNNL_ARG_BIAS, m.bias};
    }
    if (m.scratch_bytes > 0) {
      set(m.scratchpad, scratch.take<char>(m.scratch_bytes));
      args[count++] = {DNNL_ARG_SCRATCHPAD, m.scratchpad};
    }
    check(dnnl_primitive_execute(m.primitive, stream_, count, args), "dnnl_primitive_execute");
  }

 private:
  static void set(dnnl_memory_t memory, const void *p) {
    check(dnnl_memory_set_data_handle(memory, const_cast<void *>(p)), "dnnl_memory_set_data_handle");
  }

  static dnnl_memory_desc_t desc(i64 rows, i64 cols, int type, i64 row_stride, i64 col_stride) {
    const i64 dims[2] = {rows, cols}, strides[2] = {row_stride, col_stride};
    dnnl_memory_desc_t d = nullptr;
    check(dnnl_memory_desc_create_with_strides(&d, 2, dims, type, strides), "dnnl_memory_desc_create_with_strides");
    return d;
  }

  // Shapes vary with sequence length; a program that never repeats one must not grow without bound.
  static constexpr size_t kMost = 256;

  Matmul &get(Kind kind, int dt, i64 M, i64 N, i64 K) {
    const Key key{kind, dt, M, N, K, threads_.get_num_threads()};
    const auto found = cache_.find(key);
    if (found != cache_.end()) return found->second;
    if (cache_.size() >= kMost) clear();
    return cache_[key] = create(kind, dt, M, N, K);
  }

  // M, N, K as in linear_*: rows, output features, input features
  Matmul create(Kind kind, int dt, i64 M, i64 N, i64 K) {
    const int t = dt == kBF16 ? dnnl_bf16 : dnnl_f32;
    Matmul m;
    dnnl_memory_desc_t src, weights, dst, bias = nullptr;
    dnnl_primitive_attr_t attr = nullptr;
    check(dnnl_primitive_attr_create(&attr), "dnnl_primitive_attr_create");
    check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "scratchpad mode");
    if (kind == kWgrad || kind == kWgradAdd) {
      src = desc(N, M, t, 1, N);
      weights = desc(M, K, t, K, 1);
      dst = desc(N, K, dnnl_f32, K, 1);
      if (kind == kWgradAdd) {
        dnnl_post_ops_t sum = nullptr;
        check(dnnl_post_ops_create(&sum), "dnnl_post_ops_create");
        check(dnnl_post_ops_append_sum(sum, 1.0f, 0, dnnl_f32), "dnnl_post_ops_append_sum");
        check(dnnl_primitive_attr_set_post_ops(attr, sum), "dnnl_primitive_attr_set_post_ops");
        dnnl_post_ops_destroy(sum);
      }
    } else if (kind == kDgrad) {
      src = desc(M, N, t, N, 1);
      weights = desc(N, K, t, K, 1);
      dst = desc(M, K, t, K, 1);
    } else {
      src = desc(M, K, t, K, 1);
      weights = desc(K, N, t, 1, K);
      dst = desc(M, N, t, N, 1);
      if (kind == kForwardBias) bias = desc(1, N, t, N, 1);
    }
    dnnl_primitive_desc_t pd = nullptr;
    check(dnnl_matmul_primitive_desc_create(&pd, engine_, src, weights, bias, dst, attr),
          "dnnl_matmul_primitive_desc_create");
    check(dnnl_primitive_create(&m.primitive, pd), "dnnl_primitive_create");
    check(dnnl_memory_create(&m.src, src, engine_, nullptr), "dnnl_memory_create");
    check(dnnl_memory_create(&m.weights, weights, engine_, nullptr), "dnnl_memory_create");
    check(dnnl_memory_create(&m.dst, dst, engine_, nullptr), "dnnl_memory_create");
    if (bias != nullptr) check(dnnl_memory_create(&m.bias, bias, engine_, nullptr), "dnnl_memory_create");
    const dnnl_memory_desc *pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    m.scratch_bytes = pad != nullptr ? dnnl_memory_desc_get_size(pad) : 0;
    if (m.scratch_bytes > 0) check(dnnl_memory_create(&m.scratchpad, pad, engine_, nullptr), "dnnl_memory_create");
    dnnl_primitive_desc_destroy(pd);
    dnnl_primitive_attr_destroy(attr);
    dnnl_memory_desc_destroy(src);
    dnnl_memory_desc_destroy(weights);
    dnnl_memory_desc_destroy(dst);
    if (bias != nullptr) dnnl_memory_desc_destroy(bias);
    return m;
  }

  void clear() {
    for (auto &entry : cache_) {
      Matmul &m = entry.second;
      dnnl_primitive_destroy(m.primitive);
      for (dnnl_memory_t memory : {m.src, m.weights, m.bias, m.dst, m.scratchpad}) {
        if (memory != nullptr) dnnl_memory_destroy(memory);
      }
    }
    cache_.clear();
  }

  std::mutex mutex_;
  Threads threads_;
  dnnl_engine_t engine_ = nullptr;
  dnnl_stream_t stream_ = nullptr;
  std::map<Key, Matmul> cache_;
};

Gemm &gemm() {
  static Gemm *instance = new Gemm;  // never destroyed: oneDNN's own statics may go first
  return *instance;
}

constexpr i64 kGemvRows = 16;
constexpr i64 kTileTokens = 64;

// On AMX tiles, where the processor has them and the rows repay packing the weights. As many rows of A as fit the
// scratch memory are packed by all threads; then each task packs columns of B and multiplies. Every element of C is
// summed in an order that depends on K alone, however C is cut into tasks.
bool on_tiles(i64 tokens, GemmTiles g) {
  const Isa &f = isa();
  if (f.gemm_tiles == nullptr || tokens < kTileTokens) return false;
  constexpr i64 kStrip = 32, kPackedBytes = i64{24} << 20, kBlock = 512, kColumns = 256;
  const i64 row_bytes = round_up(g.K, kStrip) * (g.dt == kF32 ? 6 : 2);
  if (row_bytes * kBlock > (i64{64} << 20)) return false;  // a depth whose packed operands would take too much memory
  const i64 most = std::max(kBlock, kPackedBytes / row_bytes / kBlock * kBlock);
  const i64 height = std::min(most, round_up(g.M, kStrip));
  const i64 across = ceil_div(g.N, kColumns), wide = round_up(ceil_div(g.N, across), kStrip);
  const size_t bytes = static_cast<size_t>(row_bytes * height);
  Scratch scratch(Scratch::padded(bytes));
  g.packed = scratch.take<char>(bytes);
  for (i64 first = 0; first < g.M; first += height) {
    const i64 end = std::min(first + height, g.M), strips = ceil_div(end - first, kStrip);
    const auto row = [&](i64 strip) { return std::min(first + strip * kStrip, end); };
    parallel_for(strips, 1, [&](i64 b, i64 e) { f.gemm_pack(g, first, end, row(b), row(e)); });
    // few columns: cut the rows too, so that every thread has work
    const i64 down = std::min(ceil_div(2 * num_threads(), across), ceil_div(strips, 4));
    run_tasks(static_cast<int>(across * down), [&](int t) {
      const i64 n0 = t % across * wide, i = t / across;
      if (n0 >= g.N) return;
      f.gemm_tiles(g, first, end, row(strips * i / down), row(strips * (i + 1) / down), n0, std::min(n0 + wide, g.N));
    });
  }
  return true;
}

}  // namespace

const char *onednn_version() {
  static char text[32];
  const dnnl_version_t *v = dnnl_version();
  if (v == nullptr || v->major != 3 || (v->cpu_runtime & DNNL_RUNTIME_THREADPOOL) == 0) return nullptr;
  std::snprintf(text, sizeof(text), "%d.%d.%d", v->major, v->minor, v->patch);
  return text;
}

void linear_fwd(int dt, const void *x, const void *w, const void *bias, void *y, i64 M, i64 N, i64 K) {
  if (M == 0 || N == 0) return;
  if (M <= kGemvRows || K == 0) {
    const Isa &f = isa();
    constexpr i64 kColumns = 24;  // a multiple of every tile's width
    const i64 ldx = round_up(K, 16) + 16;
    Scratch scratch(sizeof(float) * static_cast<size_t>(M * ldx));
    float *packed = scratch.take<float>(static_cast<size_t>(M * ldx));
    f.gemv_pack(dt, x, M, K, ldx, packed);
    parallel_for(ceil_div(N, kColumns), 32768 / (kColumns * (K + 1)) + 1, [&](i64 n0, i64 n1) {
      f.gemv(dt, packed, ldx, w, bias, y, M, N, K, n0 * kColumns, std::min(n1 * kColumns, N));
    });
    return;
  }
  if (on_tiles(M, {dt, M, N, K, x, w, bias, y, nullptr, K, 1, 1, K, N, false, false})) return;
  gemm().run(bias != nullptr ? kForwardBias : kForward, dt, M, N, K, x, w, bias, y);
}

void linear_dgrad(int dt, const void *g, const void *w, void *dx, i64 M, i64 N, i64 K) {
  if (M == 0 || K == 0) return;
  if (N == 0) {
    __builtin_memset(dx, 0, static_cast<size_t>(M * K) * dtype_size(dt));
    return;
  }
  if (on_tiles(M, {dt, M, K, N, g, w, nullptr, dx, nullptr, N, 1, K, 1, K, false, false})) return;
  gemm().run(kDgrad, dt, M, N, K, g, w, nullptr, dx);
}

void linear_wgrad(int dt, const void *g, const void *x, float *main_grad, i64 M, i64 N, i64 K, bool accumulate) {
  if (M == 0 && !accumulate) op_zero(main_grad, N * K);
  if (M == 0 || N == 0 || K == 0) return;
  if (on_tiles(M, {dt, N, K, M, g, x, nullptr, main_grad, nullptr, 1, N, K, 1, K, true, accumulate})) return;
  gemm().run(accumulate ? kWgradAdd : kWgrad, dt, M, N, K, g, x, nullptr, main_grad);
}

}  // namespace msl
