// Collectives as sequences of steps. In a step every member writes into a block of its own, publishes where, waits
// until all have published, and reads the others' blocks.
//
// A block is written again only when every reader of its last contents has said so (`done`). That wait cannot deadlock:
// it is for members that arrived at an earlier step this rank has already completed, and nothing of theirs before
// `done` waits for anything later.
#include "reduce.h"
#include "wait.h"

namespace shm {
namespace {

enum Op : uint32_t { kAllReduce, kAllGather, kReduceScatter, kBroadcast, kAllToAll, kBarrier };

// Up to here one step in which everybody reduces everything beats two steps with the work shared.
constexpr size_t kSmallReduce = 32 * 1024;

char* acquire(Context& context, int& result) {
  Block& block = context.blocks[context.next_block++ % kBlocks];
  result = kOk;
  if (block.user == nullptr) return block.data;
  Group& group = *block.user;
  context.waiting = kReaders;
  context.wait_group = &group;
  context.wait_target = block.step;
  for (size_t member = 0; member < group.ranks.size() && result == kOk; ++member)
    if (int(member) != group.me) result = wait_for(context, group.entry->members()[member].done, block.step);
  return block.data;
}

void finished_reading(Group& group) { post(group.entry->members()[group.me].done, group.step); }

bool same(const Header& a, const Header& b) {
  return a.op == b.op && a.dtype == b.dtype && a.bytes == b.bytes && a.detail == b.detail && a.serial == b.serial;
}

// Publish `block` and wait for all members; `sources[m]` becomes the address of member m's block.
int step(Context& context, Group& group, Header header, char* block, const char** sources) {
  Member* members = group.entry->members();
  uint32_t size = uint32_t(group.ranks.size());
  uint32_t now = ++group.step;
  header.serial = group.serial;
  header.offset = block == nullptr ? 0 : uint64_t(block - context.base);
  members[group.me].headers[now & 1] = header;
  members[group.me].step.store(now, std::memory_order_relaxed);
  if (block != nullptr) {
    Block& used = context.blocks[(context.next_block - 1) % kBlocks];
    used.user = &group;
    used.step = now;
  }
  if (group.entry->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == now * size) {
    post(group.entry->epoch, now);
  } else {
    context.waiting = kArrival;
    context.wait_group = &group;
    context.wait_target = now;
    int result = wait_for(context, group.entry->epoch, now);
    if (result != kOk) return result;
  }
  for (uint32_t member = 0; member < size; ++member) {
    const Header& other = members[member].headers[now & 1];
    if (!same(other, header)) return kMismatch;
    sources[member] = context.base + other.offset;
  }
  return kOk;
}

// Elements [first, first + count) of the chunk that `member` reduces.
struct Slice {
  size_t first, count;
  Slice(size_t elements, size_t size, size_t member) {
    size_t share = round_up((elements + size - 1) / size, 64);
    first = std::min(elements, share * member);
    count = std::min(elements - first, share);
  }
};

int all_reduce_small(Context& context, Group& group, const char* in, char* out, size_t count, const Dtype& dtype,
                     Reducer reduce, const Header& header) {
  const char* sources[kMaxRanks];
  int result;
  char* block = acquire(context, result);
  if (result != kOk) return result;
  std::memcpy(block, in, count * dtype.bytes);
  result = step(context, group, header, block, sources);
  if (result != kOk) return result;
  sources[group.me] = in;
  reduce(out, reinterpret_cast<const void* const*>(sources), int(group.ranks.size()), count);
  finished_reading(group);
  return kOk;
}

// Chunk k's input travels in the same step as chunk k-1's reduced slice. A block is [input chunk | reduced slice].
int all_reduce_large(Context& context, Group& group, const char* in, char* out, size_t count, const Dtype& dtype,
                     Reducer reduce, const Header& header) {
  const char* inputs[kMaxRanks];
  const char* reduced[kMaxRanks];
  const void* slices[kMaxRanks];
  size_t size = group.ranks.size(), width = dtype.bytes;
  size_t chunk = context.block_bytes / width * 5 / 8 / 64 * 64, chunk_bytes = chunk * width;
  size_t chunks = (count + chunk - 1) / chunk;
  for (size_t k = 0; k <= chunks; ++k) {
    int result;
    char* block = acquire(context, result);
    if (result != kOk) return result;
    if (k < chunks) {
      size_t elements = std::min(chunk, count - k * chunk);
      const char* from = in + k * chunk_bytes;
      Slice mine(elements, size, group.me);
      std::memcpy(block, from, mine.first * width);
      size_t after = mine.first + mine.count;
      std::memcpy(block + after * width, from + after * width, (elements - after) * width);
    }
    size_t before = k == 0 ? 0 : std::min(chunk, count - (k - 1) * chunk);
    char* target = k == 0 ? nullptr : out + (k - 1) * chunk_bytes;
    if (k > 0) {
      Slice mine(before, size, group.me);
      for (size_t member = 0; member < size; ++member) slices[member] = inputs[member] + mine.first * width;
      slices[group.me] = in + (k - 1) * chunk_bytes + mine.first * width;
      reduce(block + chunk_bytes, slices, int(size), mine.count);
      finished_reading(group);
    }
    result = step(context, group, header, block, inputs);
    if (result != kOk) return result;
    for (size_t member = 0; member < size; ++member) reduced[member] = inputs[member] + chunk_bytes;
    for (size_t member = 0; k > 0 && member < size; ++member) {
      Slice slice(before, size, member);
      std::memcpy(target + slice.first * width, reduced[member], slice.count * width);
    }
  }
  finished_reading(group);
  return kOk;
}

}  // namespace
}  // namespace shm

using namespace shm;

extern "C" {

int sm_all_reduce(Context* context, int id, const char* in, char* out, uint64_t count, int code, int is_max) {
  Group& group = context->groups[id];
  const Dtype& dtype = kDtypes[code];
  Reducer reduce = is_max ? dtype.max : dtype.sum;
  Header header{kAllReduce, uint32_t(code), count * dtype.bytes, uint32_t(is_max), 0, 0};
  ++group.serial;
  size_t small = std::min(kSmallReduce, context->block_bytes);
  auto* run = count * dtype.bytes <= small ? all_reduce_small : all_reduce_large;
  return run(*context, group, in, out, count, dtype, reduce, header);
}

int sm_all_gather(Context* context, int id, const char* in, char* out, uint64_t bytes) {
  Group& group = context->groups[id];
  Header header{kAllGather, 0, bytes, 0, 0, 0};
  const char* sources[kMaxRanks];
  int size = int(group.ranks.size());
  ++group.serial;
  size_t start = 0;
  do {
    size_t part = std::min<size_t>(context->block_bytes, bytes - start);
    int result;
    char* block = acquire(*context, result);
    if (result != kOk) return result;
    std::memcpy(block, in + start, part);
    result = step(*context, group, header, block, sources);
    if (result != kOk) return result;
    sources[group.me] = in + start;
    for (int turn = 0; turn < size; ++turn) {
      int member = (group.me + turn) % size;
      std::memcpy(out + member * bytes + start, sources[member], part);
    }
    finished_reading(group);
    start += part;
  } while (start < bytes);
  return kOk;
}

int sm_reduce_scatter(Context* context, int id, const char* in, char* out, uint64_t count, int code) {
  Group& group = context->groups[id];
  const Dtype& dtype = kDtypes[code];
  size_t width = dtype.bytes, bytes = count * width;
  Header header{kReduceScatter, uint32_t(code), bytes, 0, 0, 0};
  const char* sources[kMaxRanks];
  const void* slices[kMaxRanks];
  size_t size = group.ranks.size();
  size_t chunk = context->block_bytes / size / kLine * kLine;
  ++group.serial;
  size_t start = 0;
  do {
    size_t part = std::min(chunk, bytes - start);
    int result;
    char* block = acquire(*context, result);
    if (result != kOk) return result;
    for (size_t member = 0; member < size; ++member)
      if (int(member) != group.me) std::memcpy(block + member * chunk, in + member * bytes + start, part);
    result = step(*context, group, header, block, sources);
    if (result != kOk) return result;
    for (size_t member = 0; member < size; ++member) slices[member] = sources[member] + group.me * chunk;
    slices[group.me] = in + group.me * bytes + start;
    dtype.sum(out + start, slices, int(size), part / width);
    finished_reading(group);
    start += part;
  } while (start < bytes);
  return kOk;
}

int sm_all_to_all(Context* context, int id, const char* const* in, char* const* out, uint64_t bytes) {
  Group& group = context->groups[id];
  Header header{kAllToAll, 0, bytes, 0, 0, 0};
  const char* sources[kMaxRanks];
  size_t size = group.ranks.size();
  size_t chunk = context->block_bytes / size / kLine * kLine;
  ++group.serial;
  size_t start = 0;
  do {
    size_t part = std::min<size_t>(chunk, bytes - start);
    int result;
    char* block = acquire(*context, result);
    if (result != kOk) return result;
    for (size_t member = 0; member < size; ++member)
      if (int(member) != group.me) std::memcpy(block + member * chunk, in[member] + start, part);
    result = step(*context, group, header, block, sources);
    if (result != kOk) return result;
    for (size_t member = 0; member < size; ++member)
      if (int(member) != group.me) std::memcpy(out[member] + start, sources[member] + group.me * chunk, part);
    finished_reading(group);
    start += part;
  } while (start < bytes);
  std::memcpy(out[group.me], in[group.me], bytes);
  return kOk;
}

int sm_broadcast(Context* context, int id, const char* in, char* out, uint64_t bytes, int root) {
  Group& group = context->groups[id];
  Header header{kBroadcast, 0, bytes, uint32_t(root), 0, 0};
  const char* sources[kMaxRanks];
  ++group.serial;
  size_t start = 0;
  do {
    size_t part = std::min<size_t>(context->block_bytes, bytes - start);
    char* block = nullptr;
    int result = kOk;
    if (group.me == root) {
      block = acquire(*context, result);
      if (result != kOk) return result;
      std::memcpy(block, in + start, part);
    }
    result = step(*context, group, header, block, sources);
    if (result != kOk) return result;
    std::memcpy(out + start, group.me == root ? in + start : sources[root], part);
    finished_reading(group);
    start += part;
  } while (start < bytes);
  return kOk;
}

int sm_barrier(Context* context, int id) {
  Group& group = context->groups[id];
  const char* sources[kMaxRanks];
  ++group.serial;
  int result = step(*context, group, Header{kBarrier, 0, 0, 0, 0, 0}, nullptr, sources);
  if (result == kOk) finished_reading(group);
  return result;
}

}  // extern "C"
