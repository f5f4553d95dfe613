// Matrices that are read once: loads that leave L1 to what is read again, and elements of what was
// loaded. It stays in four words, whatever T is: as an array of two-byte elements that lives across
// a branch it is taken apart and put together again, which doubles a product's instructions.
#pragma once

#include "element.cuh"

// 16 bytes whose line L1 need not keep. Nothing writes them while the kernel runs.
__device__ inline uint4 load_once(const void* from) {
#ifdef SIMT_HOST
  return *static_cast<const uint4*>(from);
#else
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
#endif
}

// The elements of one word. Of bf16 an instruction each: a float with its lower half cut off.
template <typename T>
__device__ inline void widen_word(uint32_t word, float* out) {
  T elements[4 / sizeof(T)];
  memcpy(elements, &word, sizeof word);
#pragma unroll
  for (int i = 0; i < int(4 / sizeof(T)); ++i) out[i] = to_float(elements[i]);
}
template <>
__device__ inline void widen_word<bf16>(uint32_t word, float* out) {
  const uint32_t floats[2] = {word << 16, word & 0xffff0000u};
  memcpy(out, floats, sizeof floats);
}

// The elements of 16 bytes.
template <typename T>
__device__ inline void widen(const uint4& words, float (&out)[Pack<T>::kLen]) {
  constexpr int kLen = Pack<T>::kLen / 4;
  widen_word<T>(words.x, out);
  widen_word<T>(words.y, out + kLen);
  widen_word<T>(words.z, out + 2 * kLen);
  widen_word<T>(words.w, out + 3 * kLen);
}
