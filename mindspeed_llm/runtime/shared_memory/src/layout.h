// The shared region: what lies where, and this process's view of it.
//
//   roster      64 KiB, kept by Python (who takes part, who has left, the first failure)
//   groups      kMaxGroups entries: arrivals, epoch, one line per member
//   mailboxes   ranks x ranks queues of point-to-point messages
//   blocks      per rank kBlocks blocks through which collectives pass their data
//   heaps       per rank, a large virtual range that holds messages under way
//
// The region is a sparse memory file: only touched pages take memory. Fields that different processes write lie on
// different 128-byte lines (two lines, because processors prefetch them in pairs).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace shm {

constexpr size_t kLine = 128;
constexpr size_t kPage = 4096;
constexpr size_t kRoster = 65536;
constexpr int kMaxGroups = 1024;
constexpr int kMaxRanks = 256;
constexpr int kBlocks = 4;

enum Result : int { kOk = 0, kAborted = 1, kMismatch = 2, kNoMemory = 3 };

static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free,
              "locks inside std::atomic would not work between processes");

// A counter that others wait for.
struct Word {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> sleepers;
};

// What a member says it is doing; compared by all members before any data is used. Plain memory: ordered by the
// arrival counter and the epoch.
struct Header {
  uint32_t op, dtype;
  uint64_t bytes;
  uint32_t detail, serial;
  uint64_t offset;
};

struct alignas(kLine) Member {
  std::atomic<uint32_t> step;
  alignas(kLine) Header headers[2];
  alignas(kLine) Word done;
};

struct alignas(kLine) Entry {
  std::atomic<uint64_t> key;
  alignas(kLine) std::atomic<uint32_t> arrived;
  alignas(kLine) Word epoch;
  Member* members() { return reinterpret_cast<Member*>(this + 1); }
};

// A message: its payload lies elsewhere in the sender's heap. `ready` counts the chunks already copied in.
struct alignas(64) Node {
  std::atomic<uint64_t> next;
  uint64_t bytes, payload;
  uint64_t tag;
  Word ready;
};

struct Mailbox {
  alignas(kLine) Word published;
  std::atomic<uint64_t> first;
  alignas(kLine) std::atomic<uint32_t> consumed;
};

struct Group {
  Entry* entry;
  std::vector<int> ranks;
  int me;
  uint32_t step = 0, serial = 0;
};

struct Block {
  char* data;
  Group* user = nullptr;
  uint32_t step = 0;
};

struct Flight {
  Node* node;
  uint64_t payload;
  int payload_class;
};

struct Outgoing {
  std::atomic<uint64_t>* tail = nullptr;
  uint32_t sent = 0, payloads_freed = 0, nodes_freed = 0;
  std::deque<Flight> flights;
};

struct Incoming {
  std::atomic<uint64_t>* position = nullptr;
  uint32_t received = 0;
};

enum Wait : int { kNothing, kArrival, kReaders, kMessage };

struct Context {
  char* base;
  size_t size;
  int rank, ranks, spins;
  size_t block_bytes;
  int (*idle)();
  std::deque<Group> groups;
  Block blocks[kBlocks];
  unsigned next_block = 0;
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  uint64_t heap_top, heap_end;
  std::vector<uint64_t> free_lists[64];
  // what the process is waiting for, for the error message
  Wait waiting = kNothing;
  Group* wait_group = nullptr;
  uint32_t wait_target = 0;
  int wait_source = 0;
};

inline size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

struct Layout {
  size_t groups, group_stride, mailboxes, blocks, heaps, total;
  Layout(int ranks, size_t block_bytes, size_t heap_bytes) {
    groups = kRoster;
    group_stride = sizeof(Entry) + ranks * sizeof(Member);
    mailboxes = groups + kMaxGroups * group_stride;
    blocks = round_up(mailboxes + size_t(ranks) * ranks * sizeof(Mailbox), kPage);
    heaps = blocks + size_t(ranks) * kBlocks * block_bytes;
    total = heaps + ranks * heap_bytes;
  }
};

}  // namespace shm
