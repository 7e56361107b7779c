// Mapping the region, registering groups, and telling Python what this process waits for.
#include <sys/mman.h>

#include <cerrno>

#include "layout.h"
#include "wait.h"

using namespace shm;

extern "C" {

uint64_t sm_size(int ranks, uint64_t block_bytes, uint64_t heap_bytes) {
  return Layout(ranks, block_bytes, heap_bytes).total;
}

int sm_max_ranks() { return kMaxRanks; }

// Null and errno when the file cannot be mapped. `idle` is called while waiting and may end the wait (non-zero).
Context* sm_open(int file, int rank, int ranks, uint64_t block_bytes, uint64_t heap_bytes, int spins, int (*idle)()) {
  Layout layout(ranks, block_bytes, heap_bytes);
  void* base = mmap(nullptr, layout.total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (base == MAP_FAILED) return nullptr;
  madvise(base, layout.total, MADV_DONTDUMP);
  auto* context = new Context{};
  context->base = static_cast<char*>(base);
  context->size = layout.total;
  context->rank = rank;
  context->ranks = ranks;
  context->spins = spins;
  context->block_bytes = block_bytes;
  context->idle = idle;
  for (int block = 0; block < kBlocks; ++block)
    context->blocks[block].data = context->base + layout.blocks + (size_t(rank) * kBlocks + block) * block_bytes;
  context->heap_top = layout.heaps + rank * heap_bytes;
  context->heap_end = context->heap_top + heap_bytes;
  context->outgoing.resize(ranks);
  context->incoming.resize(ranks);
  return context;
}

// Number of the group whose key is `key` (not 0); -1 when the table is full. Entries are claimed by compare-and-swap
// and never given back, so no lock is needed and none can be left held by a dead process.
int sm_group(Context* context, uint64_t key, const int32_t* ranks, int size) {
  Layout layout(context->ranks, context->block_bytes, 0);
  for (int probe = 0; probe < kMaxGroups; ++probe) {
    size_t place = (key + probe) % kMaxGroups;
    auto* entry = reinterpret_cast<Entry*>(context->base + layout.groups + place * layout.group_stride);
    uint64_t found = 0;
    if (entry->key.compare_exchange_strong(found, key) || found == key) {
      Group group{entry, std::vector<int>(ranks, ranks + size), 0};
      for (int member = 0; member < size; ++member)
        if (ranks[member] == context->rank) group.me = member;
      context->groups.push_back(group);
      return int(context->groups.size()) - 1;
    }
  }
  return -1;
}

// Sets flags[r] for each rank this process is waiting for.
void sm_awaited(Context* context, uint8_t* flags) {
  if (context->waiting == kMessage) flags[context->wait_source] = 1;
  if (context->waiting != kArrival && context->waiting != kReaders) return;
  Group& group = *context->wait_group;
  for (size_t member = 0; member < group.ranks.size(); ++member) {
    Member& other = group.entry->members()[member];
    uint32_t at = context->waiting == kArrival ? other.step.load() : other.done.value.load();
    if (!reached(at, context->wait_target)) flags[group.ranks[member]] = 1;
  }
}

// What `member` published in the group's present step: op, dtype, bytes, detail, number of the operation.
void sm_header(Context* context, int id, int member, uint64_t* fields) {
  Group& group = context->groups[id];
  const Header& header = group.entry->members()[member].headers[group.step & 1];
  uint64_t values[] = {header.op, header.dtype, header.bytes, header.detail, header.serial};
  for (int field = 0; field < 5; ++field) fields[field] = values[field];
}

uint64_t sm_serial(Context* context, int id) { return context->groups[id].serial; }

void sm_close(Context* context) {
  munmap(context->base, context->size);
  delete context;
}

}  // extern "C"
