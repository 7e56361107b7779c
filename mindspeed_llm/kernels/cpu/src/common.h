// Types shared by every translation unit of the CPU kernels. Nothing here depends on MindSpore or on an instruction
// set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace msl {

using i64 = int64_t;

enum DType : int { kF32 = 0, kBF16 = 1, kF16 = 2 };

inline i64 ceil_div(i64 x, i64 by) { return (x + by - 1) / by; }
inline i64 round_up(i64 x, i64 to) { return ceil_div(x, to) * to; }

inline size_t dtype_size(int dt) { return dt == kF32 ? 4 : 2; }

// ---- threads (pool.cc) -------------------------------------------------------------------------------------------

// Runs task(0) .. task(count - 1), each once, on the pool's threads and the caller; returns when all are done.
void run_tasks(int count, const std::function<void(int)> &task);

int num_threads();
void set_num_threads(int n);  // one until set
void set_spin_us(int n);      // how long an idle thread looks for new work before it sleeps; 0 until set
bool in_worker();

// A private 64-byte aligned buffer of the calling thread, kept between calls. Valid until its next request.
void *thread_scratch(size_t bytes);

// Splits [0, n) into ranges of at least `grain` items. Only for work whose result for an item does not depend on the
// range it falls into: that is what keeps results the same for any number of threads.
template <class F>
void parallel_for(i64 n, i64 grain, F &&body) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  i64 parts = (n + grain - 1) / grain;
  const i64 cap = 4 * static_cast<i64>(num_threads());
  if (parts > cap) parts = cap;
  if (parts <= 1 || num_threads() == 1) {
    body(i64{0}, n);
    return;
  }
  run_tasks(static_cast<int>(parts), [&](int t) { body(n * t / parts, n * (t + 1) / parts); });
}

// Like parallel_for, with range borders on multiples of 64 so that vector loops split at vector borders.
template <class F>
void parallel_elements(i64 n, F &&body) {
  const i64 blocks = (n + 63) / 64;
  parallel_for(blocks, 256, [&](i64 b, i64 e) { body(b * 64, e * 64 < n ? e * 64 : n); });
}

// A buffer shared by the threads of one kernel call; grows, and is given back when it was very large.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  // Next `bytes` bytes of the buffer, 64-byte aligned.
  template <class T>
  T *take(size_t count) {
    char *p = base_ + used_;
    used_ += (count * sizeof(T) + 63) & ~size_t{63};
    return reinterpret_cast<T *>(p);
  }
  static size_t padded(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

 private:
  char *base_;
  size_t used_ = 0;
  void *owned_ = nullptr;
};

}  // namespace msl
