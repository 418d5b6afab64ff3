#include "pool.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ventoux {

namespace {

// A decode step of a small model dispatches every few microseconds: waking a sleeper costs more than that. After so
// many turns (some 100 us) a worker sleeps, so that an idle engine costs nothing.
constexpr int kSpins = 2000;

// Whoever comes for work takes one of so many shares per thread of what is left: neighbouring tasks stream through
// neighbouring memory, and what one task fetches ahead is the beginning of the next. Late ones are small, so that all
// end together.
constexpr int kShares = 2;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

Pool::Pool(int num_threads) {
  try {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {  // the system has no more threads: those that started must end before the pool does
    stop();
    throw;
  }
}

Pool::~Pool() {
  stop();
  for (auto& [memory, bytes] : scratch_) std::free(memory);
}

void Pool::stop() {
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::dispatch(int count, const void* task, Call call) {
  count_ = count;
  task_ = task;
  call_ = call;
  next_.store(0, std::memory_order_relaxed);
  inside_.store(0, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  take();
  // Whoever came in must have left before the next dispatch changes what they read.
  inside_.fetch_add(kClosed, std::memory_order_relaxed);
  for (int spins = 0; inside_.load(std::memory_order_acquire) != kClosed; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Pool::take() {
  try {
    const int shares = kShares * num_threads();
    int first = next_.load(std::memory_order_relaxed);
    while (first < count_) {
      const int end = first + std::max(1, (count_ - first) / shares);
      if (!next_.compare_exchange_weak(first, end, std::memory_order_relaxed)) continue;
      for (int i = first; i < end && !failed_.load(std::memory_order_relaxed); ++i) call_(task_, i);
      first = next_.load(std::memory_order_relaxed);
    }
  } catch (...) {
    next_.store(count_, std::memory_order_relaxed);
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
}

void Pool::work() {
  unsigned seen = 0;
  while (true) {
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) relax();
    epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_) return;
    int inside = inside_.load(std::memory_order_relaxed);
    while (inside >= 0 && !inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) {
    }
    if (inside < 0) continue;
    take();
    inside_.fetch_sub(1, std::memory_order_release);
  }
}

void* Pool::scratch(int slot, size_t bytes) {
  if (size_t(slot) >= scratch_.size()) scratch_.resize(slot + 1, {nullptr, 0});
  auto& [memory, size] = scratch_[slot];
  if (size < bytes) {
    std::free(memory);
    memory = nullptr;
    size = 0;
    size_t rounded = (bytes + bytes / 4 + 63) / 64 * 64;
    memory = std::aligned_alloc(64, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    size = rounded;
  }
  return memory;
}

size_t Pool::scratch_bytes() const {
  size_t bytes = 0;
  for (const auto& [memory, size] : scratch_) bytes += size;
  return bytes;
}

}  // namespace ventoux
