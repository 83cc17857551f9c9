// A few threads that wait for short pieces of work: they spin for a moment between two calls, and sleep after it.
#pragma once

namespace fewbit {

// work(context, k) for k = 0 … tasks - 1, by the caller and up to threads - 1 others; returns when all are done. One caller at
// a time has the others' help; a second one at the same moment does its own work alone. work must not throw.
void in_parallel(int threads, int tasks, void (*work)(void*, int), void* context);

template <class F>
void in_parallel(int threads, int tasks, F work) {
  in_parallel(threads, tasks, [](void* f, int k) { (*static_cast<F*>(f))(k); }, &work);
}

}  // namespace fewbit
