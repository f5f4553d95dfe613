// Makes kernels callable from a test by name: compiled for the host, a kernel becomes a C function
// that takes what cuLaunchKernel takes. Include before the .cu file.
#pragma once

#include "simt.h"

#include <utility>

namespace simt {

template <class... Args, size_t... Index>
void call(void (*kernel)(Args...), void** params, std::index_sequence<Index...>) {
  kernel(*static_cast<std::remove_reference_t<Args>*>(params[Index])...);
}

// `grid` and `block` are three numbers each; each of `params` points to an argument. Returns null,
// or why threads diverged, valid until the next call on this thread.
template <class... Args>
const char* run(void (*kernel)(Args...), size_t num_params, const unsigned* grid,
                const unsigned* block, unsigned shared_bytes, void** params, int order) {
  static thread_local std::string error;
  if (num_params != sizeof...(Args)) {
    error = std::to_string(num_params) + " arguments for " + std::to_string(sizeof...(Args));
    return error.c_str();
  }
  error = launch(
      dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes,
      [&] { call(kernel, params, std::index_sequence_for<Args...>()); }, kAllOrders[order]);
  return error.empty() ? nullptr : error.c_str();
}

}  // namespace simt

#define SIMT_EXPORT(name)                                                                       \
  extern "C" const char* simt_##name(size_t num_params, const unsigned* grid,                   \
                                     const unsigned* block, unsigned shared_bytes,              \
                                     void** params, int order) {                                \
    return simt::run(name, num_params, grid, block, shared_bytes, params, order);               \
  }
