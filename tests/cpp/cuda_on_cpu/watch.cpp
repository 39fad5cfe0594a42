#include "watch.h"

#include <c10/core/CPUAllocator.h>
#include <cuda_runtime.h>

#include <map>
#include <unordered_map>

extern "C" __attribute__((visibility("hidden"))) char __bss_start, _end;  // of this library

namespace cuda_on_cpu {
namespace {

using Address = std::uintptr_t;

constexpr Address kGrain = 4, kBeyond = 64;  // bytes: of a number, and kept free behind a tensor

bool watching = false;
std::string finding;

struct Access {
  unsigned block, thread, meeting;  // thread: of its block
  bool there = false;
  bool several = false;  // lanes of this warp have, since they met
  bool foreign = false;  // so has another warp

  unsigned warp() const { return thread / kLanes; }
  bool same_warp(const Access& other) const {
    return block == other.block && warp() == other.warp();
  }
  bool same_lane(const Access& other) const { return same_warp(other) && thread == other.thread; }

  // Whether `other`, one of them a write, is ordered with all that this stands for.
  bool ordered(const Access& other) const {
    if (!there) return true;
    if (foreign || !same_warp(other)) return false;
    return meeting != other.meeting || (same_lane(other) && !several);
  }
  // This, then `other`.
  Access then(Access other) const {
    if (!there) return other;
    other.foreign = foreign || !same_warp(other);
    other.several = meeting == other.meeting && (several || !same_lane(other));
    return other;
  }
};

struct Accesses {
  Access write, read;
};

std::unordered_map<Address, Accesses> accesses;           // of numbers in the memory of the device
std::map<std::pair<unsigned, Address>, Accesses> shared;  // of blocks in their shared memory

// The memory of tensors, by where it begins.
std::map<Address, Address>& tensors() {
  static auto& tensors = *new std::map<Address, Address>;
  return tensors;
}

struct Recorded final : c10::Allocator {
  static c10::Allocator* base() {
    static c10::Allocator* base = c10::GetCPUAllocator();
    return base;
  }
  static void free(void* context) {
    const std::unique_ptr<c10::DataPtr> memory(static_cast<c10::DataPtr*>(context));
    tensors().erase(reinterpret_cast<Address>(memory->get()));
  }
  c10::DataPtr allocate(std::size_t n) override {
    auto memory = std::make_unique<c10::DataPtr>(base()->allocate(n + kBeyond));
    void* data = memory->get();
    const c10::Device device = memory->device();
    if (data) tensors()[reinterpret_cast<Address>(data)] = reinterpret_cast<Address>(data) + n;
    return {data, memory.release(), &free, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t n) const override {
    std::memcpy(to, from, n);
  }
};

bool behind_a_tensor(Address at) {
  auto next = tensors().upper_bound(at);
  if (next == tensors().begin()) return false;
  const Address end = std::prev(next)->second - (fault.is("short tensor") ? kGrain : 0);
  return at >= end && at < end + kBeyond;
}

void found(const char* what, Address at) {
  const Warp& warp = Warp::get();
  char text[200];
  std::snprintf(text, sizeof text, "%s (block %u, thread %u, address %p)", what, warp.block,
                warp.first_thread + warp.lane, reinterpret_cast<void*>(at));
  if (finding.empty()) finding = text;
}

void see(Address at, bool write) {
  Warp& warp = Warp::get();
  const bool is_shared =
      at >= reinterpret_cast<Address>(&__bss_start) && at < reinterpret_cast<Address>(&_end);
  const Access now{warp.block, warp.first_thread + warp.lane, warp.meetings, true};
  if (!is_shared && behind_a_tensor(at)) found("an access behind a tensor", at);
  if (is_shared && write && warp.lane == 0 && fault.is("missing write")) return;
  Accesses& before = is_shared ? shared[{now.block, at}] : accesses[at];
  if (is_shared && !write && !before.write.there) found("shared memory is read, not written", at);
  if (!before.write.ordered(now) || (write && !before.read.ordered(now)))
    found("a race of two lanes", at);
  Access& last = write ? before.write : before.read;
  last = last.then(now);
}

void see(const volatile void* pointer, std::size_t size, bool write) {
  if (!watching || !Warp::get().running) return;
  const Warp& warp = Warp::get();
  const Address at = reinterpret_cast<Address>(pointer);
  const auto inside = [at](const void* begin, std::size_t n) {
    return at >= reinterpret_cast<Address>(begin) && at < reinterpret_cast<Address>(begin) + n;
  };
  if (inside(&warp, sizeof warp) || inside(warp.stacks.data(), warp.stacks.size())) return;
  for (Address k = at / kGrain * kGrain; k < at + size; k += kGrain) see(k, write);
}

}  // namespace

void watch(bool on) {
  static Recorded recorded;
  Recorded::base();
  c10::SetCPUAllocator(on ? &recorded : Recorded::base(), /*priority=*/100);
  watching = on;
  finding.clear();
}

void start_watch() {
  accesses.clear();
  shared.clear();
  finding.clear();
}

const std::string& found_by_watch() { return finding; }

bool is_missing(int line) { return fault.is("missing barrier") && fault.line == line; }

}  // namespace cuda_on_cpu

#define SEE(kind, size, write)                                              \
  void __tsan_##kind##size(void* at) { cuda_on_cpu::see(at, size, write); } \
  void __tsan_unaligned_##kind##size(void* at) { cuda_on_cpu::see(at, size, write); }

extern "C" {
SEE(read, 1, false)
SEE(read, 2, false)
SEE(read, 4, false)
SEE(read, 8, false)
SEE(read, 16, false)
SEE(write, 1, true)
SEE(write, 2, true)
SEE(write, 4, true)
SEE(write, 8, true)
SEE(write, 16, true)
void __tsan_read_range(void* at, std::size_t size) { cuda_on_cpu::see(at, size, false); }
void __tsan_write_range(void* at, std::size_t size) { cuda_on_cpu::see(at, size, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
unsigned char __tsan_atomic8_load(const volatile unsigned char* at, int) { return *at; }
}
