// Point-to-point messages. Per ordered pair of ranks one queue, a linked list with one writer and one reader; payloads
// lie in the sender's heap, which grows as needed, so sending never waits for the receiver.
//
// The sender frees what the receiver's `consumed` counter has passed. The list node of the last consumed message stays,
// because the receiver will find the next message through its `next`.
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "wait.h"

namespace shm {
namespace {

// A large message is handed over in parts: the receiver copies one out while the sender copies the next in.
constexpr size_t kChunk = 512 * 1024;
// Freed payloads of this size give their pages back at once; smaller ones are kept warm.
constexpr int kReturnClass = 25;
constexpr int kNodeClass = 7;
static_assert(sizeof(Node) <= (1u << kNodeClass));

Mailbox& mailbox(Context& context, int source, int target) {
  Layout layout(context.ranks, context.block_bytes, 0);
  return reinterpret_cast<Mailbox*>(context.base + layout.mailboxes)[size_t(source) * context.ranks + target];
}

int size_class(size_t bytes) {
  int bits = 12;
  while ((size_t(1) << bits) < bytes) ++bits;
  return bits;
}

// Offset of 2^bits free bytes in this rank's heap, 0 if it is full.
uint64_t take_space(Context& context, int bits) {
  auto& list = context.free_lists[bits];
  if (!list.empty()) {
    uint64_t offset = list.back();
    list.pop_back();
    return offset;
  }
  uint64_t start = round_up(context.heap_top, bits >= 12 ? kPage : kLine);
  if (start + (uint64_t(1) << bits) > context.heap_end) return 0;
  context.heap_top = start + (uint64_t(1) << bits);
  return start;
}

void give_space(Context& context, uint64_t offset, int bits) {
  if (bits >= kReturnClass) madvise(context.base + offset, size_t(1) << bits, MADV_REMOVE);
  context.free_lists[bits].push_back(offset);
}

void reclaim(Context& context, int target) {
  Outgoing& out = context.outgoing[target];
  uint32_t consumed = mailbox(context, context.rank, target).consumed.load(std::memory_order_acquire);
  for (; out.payloads_freed != consumed; ++out.payloads_freed) {
    Flight& flight = out.flights[out.payloads_freed - out.nodes_freed];
    if (flight.payload != 0) give_space(context, flight.payload, flight.payload_class);
  }
  while (out.nodes_freed != consumed && out.nodes_freed + 1 != consumed) {
    give_space(context, uint64_t(reinterpret_cast<char*>(out.flights.front().node) - context.base), kNodeClass);
    out.flights.pop_front();
    ++out.nodes_freed;
  }
}

}  // namespace
}  // namespace shm

using namespace shm;

extern "C" {

int sm_send(Context* context, int target, uint64_t tag, const char* data, uint64_t bytes) {
  reclaim(*context, target);
  Outgoing& out = context->outgoing[target];
  Mailbox& box = mailbox(*context, context->rank, target);
  int bits = bytes == 0 ? 0 : size_class(bytes);
  uint64_t payload = bytes == 0 ? 0 : take_space(*context, bits);
  uint64_t place = take_space(*context, kNodeClass);
  if (place == 0 || (bytes != 0 && payload == 0)) return kNoMemory;
  Node* node = new (context->base + place) Node{};
  node->bytes = bytes;
  node->payload = payload;
  node->tag = tag;
  size_t sent = std::min<uint64_t>(kChunk, bytes);
  std::memcpy(context->base + payload, data, sent);
  node->ready.value.store(1, std::memory_order_relaxed);
  if (out.tail == nullptr) out.tail = &box.first;
  out.tail->store(place, std::memory_order_release);
  out.tail = &node->next;
  out.flights.push_back({node, payload, bits});
  post(box.published, ++out.sent);
  for (uint32_t chunk = 2; sent < bytes; ++chunk) {
    size_t part = std::min<uint64_t>(kChunk, bytes - sent);
    std::memcpy(context->base + payload + sent, data + sent, part);
    sent += part;
    post(node->ready, chunk);
  }
  return kOk;
}

// Wait for the next message of `source`, whatever its tag, and describe it; it stays in the queue.
int sm_peek(Context* context, int source, uint64_t* tag, uint64_t* bytes) {
  Incoming& in = context->incoming[source];
  Mailbox& box = mailbox(*context, source, context->rank);
  context->waiting = kMessage;
  context->wait_source = source;
  int result = wait_for(*context, box.published, in.received + 1);
  if (result != kOk) return result;
  if (in.position == nullptr) in.position = &box.first;
  const Node* node = reinterpret_cast<Node*>(context->base + in.position->load(std::memory_order_acquire));
  *tag = node->tag;
  *bytes = node->bytes;
  return kOk;
}

// Copy the message that sm_peek described to `data` and remove it from the queue.
int sm_take(Context* context, int source, char* data) {
  Incoming& in = context->incoming[source];
  Mailbox& box = mailbox(*context, source, context->rank);
  Node* node = reinterpret_cast<Node*>(context->base + in.position->load(std::memory_order_acquire));
  uint64_t got = 0;
  for (uint32_t chunk = 1; got < node->bytes; ++chunk) {
    int result = wait_for(*context, node->ready, chunk);
    if (result != kOk) return result;
    size_t part = std::min<uint64_t>(kChunk, node->bytes - got);
    std::memcpy(data + got, context->base + node->payload + got, part);
    got += part;
  }
  in.position = &node->next;
  box.consumed.store(++in.received, std::memory_order_release);
  return kOk;
}

}  // extern "C"
