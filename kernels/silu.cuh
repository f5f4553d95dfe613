// The activation between a layer's gate and its up projection.
#pragma once

#include "element.cuh"

// gate / (1 + exp(-gate)) * up, for a result of T. A T of two bytes takes the hardware's
// exponential and reciprocal: their error is below 2^-19 of the result up to |gate| = 10, and
// such a T keeps 11 bits at most. For a gate below -87 it gives 0 instead of some -1e-36.
template <typename T>
__device__ inline float silu_mul(float gate, float up) {
  if constexpr (sizeof(T) == 4)
    return gate / (1.f + expf(-gate)) * up;
  else
    return __fdividef(gate, 1.f + __expf(-gate)) * up;
}
