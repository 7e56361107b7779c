// The thread pool of the CPU kernels. libgomp is not used because its waiting threads spin for a time that can only be
// set by an environment variable read before the library is loaded; with several ranks per core that spinning costs
// more than the work. Here waiting threads spin for a time that the program chooses: none when ranks share cores.
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "common.h"

namespace msl {
namespace {

thread_local bool t_in_worker = false;

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

i64 now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<i64>(t.tv_sec) * 1000000000 + t.tv_nsec;
}

class Pool {
 public:
  int threads() const { return threads_; }
  void set_threads(int n) { threads_ = n < 1 ? 1 : n; }
  i64 spin_ns() const { return spin_ns_.load(std::memory_order_relaxed); }
  void set_spin_ns(i64 n) { spin_ns_.store(n, std::memory_order_relaxed); }

  void run(int count, const std::function<void(int)> &task) {
    if (count <= 0) return;
    std::unique_lock<std::mutex> caller(callers_, std::defer_lock);
    if (count == 1 || threads_ == 1 || t_in_worker || !caller.try_lock()) {
      for (int i = 0; i < count; ++i) task(i);
      return;
    }
    start_workers(threads_ - 1);
    {
      std::lock_guard<std::mutex> hold(mutex_);
      task_ = &task;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      open_ = true;
      helpers_wanted_ = (count < threads_ ? count : threads_) - 1;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    if (sleepers_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    t_in_worker = true;
    work(task, count);
    t_in_worker = false;
    std::unique_lock<std::mutex> hold(mutex_);
    open_ = false;
    if (joined_ > 0) {
      hold.unlock();
      const i64 until = now_ns() + spin_ns();
      while (active_.load(std::memory_order_acquire) > 0 && now_ns() < until) cpu_relax();
      hold.lock();
      done_.wait(hold, [&] { return active_.load(std::memory_order_acquire) == 0; });
      joined_ = 0;
    }
    task_ = nullptr;
  }

 private:
  void work(const std::function<void(int)> &task, int count) {
    for (;;) {
      const int i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      task(i);
    }
  }

  void start_workers(int wanted) {
    while (static_cast<int>(started_) < wanted) {
      std::thread([this] { worker(); }).detach();
      ++started_;
    }
  }

  void worker() {
    t_in_worker = true;
    uint64_t seen = 0;
    for (;;) {
      const i64 spin = spin_ns(), until = spin > 0 ? now_ns() + spin : 0;
      while (spin > 0 && epoch_.load(std::memory_order_acquire) == seen && now_ns() < until) {
        for (int i = 0; i < 16; ++i) cpu_relax();
      }
      std::unique_lock<std::mutex> hold(mutex_);
      if (epoch_.load(std::memory_order_relaxed) == seen) {
        sleepers_.fetch_add(1);
        wake_.wait(hold, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
        sleepers_.fetch_sub(1);
      }
      seen = epoch_.load(std::memory_order_relaxed);
      if (!open_ || joined_ >= helpers_wanted_) continue;
      const std::function<void(int)> *task = task_;
      const int count = count_;
      ++joined_;
      active_.fetch_add(1);
      hold.unlock();
      work(*task, count);
      hold.lock();
      if (active_.fetch_sub(1) == 1) done_.notify_one();
    }
  }

  int threads_ = 1;
  std::atomic<i64> spin_ns_{0};
  unsigned started_ = 0;
  std::mutex callers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> next_{0}, active_{0}, sleepers_{0};
  const std::function<void(int)> *task_ = nullptr;
  int count_ = 0, joined_ = 0, helpers_wanted_ = 0;
  bool open_ = false;
};

// Never destroyed: worker threads may outlive static destructors. A forked child has no workers and gets a new pool.
Pool *g_pool = nullptr;

void renew_pool() {
  Pool *fresh = new Pool();
  if (g_pool != nullptr) {
    fresh->set_threads(g_pool->threads());
    fresh->set_spin_ns(g_pool->spin_ns());
  }
  g_pool = fresh;
}

Pool &pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    renew_pool();
    pthread_atfork(nullptr, nullptr, renew_pool);
  });
  return *g_pool;
}

// Large buffers lie on huge pages where the system has them: packed operands are read from end to end again and again, and
// addresses of small pages that have left the processor's table cost much on a virtual machine.
void *aligned(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool large = bytes > kHugePage / 4;
  if (large) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void *p = nullptr;
  if (posix_memalign(&p, large ? kHugePage : 64, bytes > 0 ? bytes : 64) != 0) throw std::bad_alloc();
#if defined(__linux__)
  if (large) madvise(p, bytes, MADV_HUGEPAGE);  // a wish: without it only time is lost
#endif
  return p;
}

struct ThreadBuffer {
  void *data = nullptr;
  size_t size = 0;
  ~ThreadBuffer() { std::free(data); }
};

constexpr size_t kKeep = size_t{64} << 20;
std::mutex g_shared_mutex;
char *g_shared = nullptr;
size_t g_shared_size = 0;
bool g_shared_busy = false;

}  // namespace

void run_tasks(int count, const std::function<void(int)> &task) { pool().run(count, task); }
int num_threads() { return pool().threads(); }
void set_num_threads(int n) { pool().set_threads(n); }
void set_spin_us(int n) { pool().set_spin_ns(static_cast<i64>(n < 0 ? 0 : n) * 1000); }
bool in_worker() { return t_in_worker; }

void *thread_scratch(size_t bytes) {
  thread_local ThreadBuffer buffer;
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = aligned(bytes);
    buffer.size = bytes;
  }
  return buffer.data;
}

Scratch::Scratch(size_t bytes) {
  std::lock_guard<std::mutex> hold(g_shared_mutex);
  if (g_shared_busy || bytes > kKeep) {
    owned_ = aligned(bytes);
    base_ = static_cast<char *>(owned_);
    return;
  }
  if (g_shared_size < bytes) {
    std::free(g_shared);
    g_shared = nullptr;
    g_shared_size = 0;
    g_shared = static_cast<char *>(aligned(bytes));
    g_shared_size = bytes;
  }
  g_shared_busy = true;
  base_ = g_shared;
}

Scratch::~Scratch() {
  std::lock_guard<std::mutex> hold(g_shared_mutex);
  if (owned_ != nullptr) {
    std::free(owned_);
  } else {
    g_shared_busy = false;
  }
}

}  // namespace msl
