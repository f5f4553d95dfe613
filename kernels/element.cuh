// What every kernel shares: element types, wide loads and stores, warp sums. Elements are computed
// with in f32, whatever they are stored as.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#ifndef SIMT_HOST
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
// Makes a kernel callable by name where it is compiled for the host (simt/export.h).
#define SIMT_EXPORT(name)
#endif

typedef __nv_bfloat16 bf16;
typedef __half f16;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(f16 x) { return __half2float(x); }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline f16 from_float<f16>(float x) {
  return __float2half(x);
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16(x);
}

// As many elements as one load brings: 4 of f32, 8 of two bytes. Its address is a multiple of 16.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kLen = 16 / sizeof(T);
  T at[kLen];
};

template <typename T>
__device__ inline Pack<T> load_pack(const T* from) {
  Pack<T> pack;
  *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(from);
  return pack;
}

template <typename T>
__device__ inline void store_pack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&pack);
}

// Four elements, which lie beside 16 bytes of f32. Their address is a multiple of their size.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T at[4];
};

template <typename T>
__device__ inline Quad<T> load_quad(const T* from) {
  Quad<T> quad;
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<uint4*>(&quad) = *reinterpret_cast<const uint4*>(from);
  else
    *reinterpret_cast<uint2*>(&quad) = *reinterpret_cast<const uint2*>(from);
  return quad;
}

template <typename T>
__device__ inline void store_quad(T* to, const Quad<T>& quad) {
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&quad);
  else
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(&quad);
}

__device__ inline float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ inline float warp_max(float x) {
  for (int offset = 16; offset > 0; offset >>= 1)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
