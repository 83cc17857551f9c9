// The pool is never destroyed: its threads may sleep while the process exits. A forked child starts with a pool of its own.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fewbit {
namespace {

constexpr int MOST_THREADS = 256;
constexpr auto SPIN = std::chrono::microseconds(200);  // about what lies between two layers of a model in Python

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Pool {
  std::mutex one_caller;
  int helpers = 0;
  void (*work)(void*, int) = nullptr;
  void* context = nullptr;
  int tasks = 0;
  alignas(64) std::atomic<uint32_t> round{0};  // odd while there is work
  alignas(64) std::atomic<int> next{0};
  alignas(64) std::atomic<int> inside{0};      // helpers that may look at work
  alignas(64) std::atomic<int> asleep{0};

  void take() {
    for (int k; (k = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(context, k);
  }

  uint32_t wait(uint32_t seen) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0;; i++) {
      const uint32_t now = round.load();
      if (now != seen) return now;
      pause();
      if (i % 64 == 63 && std::chrono::steady_clock::now() - start > SPIN) break;
    }
    asleep.fetch_add(1);
    round.wait(seen);
    asleep.fetch_sub(1);
    return round.load();
  }

  // `inside` is raised before the round is looked at again: a caller that has closed the round then waits for this helper, and a
  // helper that comes later sees it closed.
  void help() {
    for (uint32_t seen = round.load();; seen = wait(seen)) {
      if (seen % 2 == 0) continue;
      inside.fetch_add(1);
      if (round.load() == seen) take();
      inside.fetch_sub(1);
    }
  }

  void run(int threads, int count, void (*f)(void*, int), void* with) {
    try {
      for (; helpers < threads - 1; helpers++) std::thread([this] { help(); }).detach();
    } catch (const std::exception&) {  // the system gives no more threads: those that there are do it
    }
    work = f, context = with, tasks = count;
    next.store(0);
    round.fetch_add(1);
    if (asleep.load()) round.notify_all();
    take();
    round.fetch_add(1);
    while (inside.load()) pause();
  }
};

Pool* pool = new Pool;

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
#endif

}  // namespace

void in_parallel(int threads, int tasks, void (*work)(void*, int), void* context) {
  threads = threads < MOST_THREADS ? threads : MOST_THREADS;
  if (threads > 1 && tasks > 1) {
    const std::unique_lock<std::mutex> alone(pool->one_caller, std::try_to_lock);
    if (alone.owns_lock()) return pool->run(threads, tasks, work, context);
  }
  for (int k = 0; k < tasks; k++) work(context, k);
}

}  // namespace fewbit
