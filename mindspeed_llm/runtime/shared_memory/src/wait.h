// Waiting for a counter and waking those who wait.
//
// Order: a writer fills plain memory, then stores the counter; a reader that saw the counter reads the memory. The
// counter's accesses are sequentially consistent because waker and sleeper each write one word and read the other
// (counter, sleepers): with weaker order both could miss the other, and the sleeper would sleep through.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

#include "layout.h"

namespace shm {

constexpr long kSliceNanoseconds = 100 * 1000 * 1000;

// Counters wrap around; distances stay far below 2^31.
inline bool reached(uint32_t value, uint32_t target) { return int32_t(value - target) >= 0; }

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline void post(Word& word, uint32_t value) {
  word.value.store(value, std::memory_order_seq_cst);
  if (word.sleepers.load(std::memory_order_seq_cst) != 0)
    syscall(SYS_futex, &word.value, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Sleeps in slices and calls `idle` between them, which looks for dead peers, the time limit and signals.
inline int wait_for(Context& context, Word& word, uint32_t target) {
  for (int spin = 0; spin < context.spins; ++spin) {
    if (reached(word.value.load(std::memory_order_acquire), target)) return kOk;
    relax();
  }
  while (true) {
    word.sleepers.fetch_add(1, std::memory_order_seq_cst);
    uint32_t seen = word.value.load(std::memory_order_seq_cst);
    long slept = 0;
    if (!reached(seen, target)) {
      timespec slice{0, kSliceNanoseconds};
      slept = syscall(SYS_futex, &word.value, FUTEX_WAIT, seen, &slice, nullptr, 0);
    }
    word.sleepers.fetch_sub(1, std::memory_order_seq_cst);
    if (reached(word.value.load(std::memory_order_acquire), target)) return kOk;
    if (slept != 0 && context.idle() != 0) return kAborted;
  }
}

}  // namespace shm
