// Tensor cores and what feeds them, each PTX instruction in a function of its own. The bodies for
// the host exchange the fragments between lanes as the PTX ISA lays them out.
//
// T is f16 or bf16. A register holds two of them, the first in its low half. All 32 lanes of a
// warp call together. Below, row = lane / 4 and pair = lane % 4 * 2.
#pragma once

#include "element.cuh"

template <typename T>
struct is_bf16 {
  static constexpr bool value = false;
};
template <>
struct is_bf16<bf16> {
  static constexpr bool value = true;
};

#ifdef SIMT_HOST
inline uint32_t bits_of(f16 x) {
  uint16_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline uint32_t bits_of(bf16 x) { return x.bits; }

// Half `index` of a register, widened.
template <typename T>
inline float half_of(uint32_t pair, int index) {
  const uint16_t bits = static_cast<uint16_t>(pair >> index * 16);
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return to_float(x);
}
#endif

// Two numbers rounded to T in one register.
template <typename T>
__device__ inline uint32_t pack_pair(float low, float high) {
#ifdef SIMT_HOST
  return bits_of(from_float<T>(low)) | bits_of(from_float<T>(high)) << 16;
#else
  uint32_t pair;
  if constexpr (is_bf16<T>::value) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#endif
}

// 2^x in one instruction; 0 at minus infinity, and where the result would be subnormal.
__device__ inline float fast_exp2(float x) {
#ifdef SIMT_HOST
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// d += a * b with a [16, 16], b [16, 8] and d [16, 8], summed in f32. A lane holds
//   a: (row, pair), (row + 8, pair), (row, pair + 8), (row + 8, pair + 8), each with the next column
//   b: (pair, row), (pair + 8, row), each with the next row
//   d: (row, pair), (row, pair + 1), (row + 8, pair), (row + 8, pair + 1)
template <typename T>
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef SIMT_HOST
  uint64_t left[2][32], right[32];
  const auto gather = [](uint64_t(&all)[32], uint32_t low, uint32_t high) {
    std::memcpy(all, simt::exchange(~0u, low | static_cast<uint64_t>(high) << 32), sizeof all);
  };
  gather(left[0], a[0], a[1]);
  gather(left[1], a[2], a[3]);
  gather(right, b0, b1);
  const int lane = simt::lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int within = k % 8 / 2;
      const uint64_t x = left[k / 8][row * 4 + within] >> (i / 2 * 32);
      const uint64_t y = right[column * 4 + within] >> (k / 8 * 32);
      d[i] += half_of<T>(static_cast<uint32_t>(x), k % 2) *
              half_of<T>(static_cast<uint32_t>(y), k % 2);
    }
  }
#else
  if constexpr (is_bf16<T>::value) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// Four 8 x 8 matrices from shared memory, whose rows of 16 bytes lie anywhere: lane l gives where
// row l % 8 of matrix l / 8 begins. Of each matrix a lane gets (row, pair) and the next column.
template <typename T>
__device__ inline void load_matrices(uint32_t (&to)[4], const T* from) {
#ifdef SIMT_HOST
  const uint64_t* rows = simt::exchange(~0u, reinterpret_cast<uint64_t>(from));
  const int lane = simt::lane();
  for (int i = 0; i < 4; ++i) {
    const T* row = reinterpret_cast<const T*>(rows[i * 8 + lane / 4]) + lane % 4 * 2;
    to[i] = bits_of(row[0]) | bits_of(row[1]) << 16;
  }
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))));
#endif
}

// The same of the transposed matrices: a lane gets (pair, row) and the next row.
template <typename T>
__device__ inline void load_transposed(uint32_t (&to)[4], const T* from) {
#ifdef SIMT_HOST
  const uint64_t* rows = simt::exchange(~0u, reinterpret_cast<uint64_t>(from));
  const int lane = simt::lane();
  for (int i = 0; i < 4; ++i) {
    const uint64_t* pair = rows + i * 8 + lane % 4 * 2;
    to[i] = bits_of(reinterpret_cast<const T*>(pair[0])[lane / 4]) |
            bits_of(reinterpret_cast<const T*>(pair[1])[lane / 4]) << 16;
  }
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))));
#endif
}

// Starts a copy of 16 bytes to shared memory past the registers and L1, or of zeros where there is
// nothing to copy; `from` is an address of global memory all the same. What is copied is there for
// the thread once it has waited, for others after a barrier that follows.
__device__ inline void copy_async(void* to, const void* from, bool there) {
#ifdef SIMT_HOST
  simt::copy_async(to, from, there ? simt::kCopyBytes : 0);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
               : "memory");
#endif
}

// Waits for all copies of this thread.
__device__ inline void wait_for_copies() {
#ifdef SIMT_HOST
  simt::wait_for_copies();
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
