// One pool of threads for all operators of a process. Work is cut into numbered tasks whose results do not depend on
// who runs them; threads take shares of what is left, smaller and smaller ones, until nothing is.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ventoux {

class Pool {
 public:
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return int(workers_.size()) + 1; }

  // Runs task(0) .. task(count - 1), the caller's thread included; returns when all are done. Not reentrant. If a task
  // throws (memory may run out), the others are skipped and the first exception is thrown here.
  template <class Task>
  void run(int count, const Task& task) {
    if (count <= 0) return;
    if (count == 1 || workers_.empty()) {
      for (int i = 0; i < count; ++i) task(i);
      return;
    }
    dispatch(count, &task, [](const void* t, int i) { (*static_cast<const Task*>(t))(i); });
  }

  // Memory that lives until the next call with the same slot, 64-byte aligned. One operator runs at a time.
  void* scratch(int slot, size_t bytes);
  size_t scratch_bytes() const;  // of all slots

  std::mutex& in_use() { return in_use_; }

 private:
  using Call = void (*)(const void*, int);
  void dispatch(int count, const void* task, Call call);
  void work();
  void take();
  void stop();

  std::vector<std::thread> workers_;
  std::mutex in_use_;
  std::vector<std::pair<void*, size_t>> scratch_;

  std::exception_ptr error_;  // the first one that a task threw
  std::atomic<bool> failed_{false};

  alignas(64) std::atomic<unsigned> epoch_{0};  // rises by one per dispatch; workers wait for it
  alignas(64) std::atomic<int> next_{0};
  // Workers inside a dispatch; kClosed is added while there is none to enter. Nobody waits for a worker that the system
  // has not run yet: it finds the door closed.
  static constexpr int kClosed = -(1 << 30);
  alignas(64) std::atomic<int> inside_{kClosed};
  std::atomic<bool> stop_{false};
  alignas(64) int count_ = 0;  // read by all, task by task
  const void* task_ = nullptr;
  Call call_ = nullptr;
};

}  // namespace ventoux
