// The gate of a layer's feed-forward half, where its product was made by the matrix library; for
// few rows `gated_gemv` does both.
//
//   gate_up  [rows, 2 * inner]  T: the gate, then what it gates
//   out      [rows, inner]      T
//   out = gate / (1 + exp(-gate)) * up, in f32
//
// One thread for 16 bytes of out: two loads, one store, nothing is shared. 256 threads with few
// registers fill an SM (64 KiB asked for at once, where an H100 needs some 25 KiB). rows are the
// grid's x, which may be large. Division and exponential of two-byte types are the hardware's:
// with exact ones an H100 would have as many instructions to issue as bytes to wait for.
// Bytes: rows * inner * 3 * sizeof(T); 5 FLOPs an element.
#include "silu.cuh"

constexpr int kSiluThreads = 256;

template <typename T>
__device__ void silu_mul_row(const T* gate_up, T* out, int inner) {
  const int i = (blockIdx.y * kSiluThreads + threadIdx.x) * Pack<T>::kLen;
  if (i >= inner) return;
  const T* from = gate_up + static_cast<size_t>(blockIdx.x) * 2 * inner + i;
  const Pack<T> gate = load_pack(from), up = load_pack(from + inner);
  Pack<T> product;
  for (int j = 0; j < Pack<T>::kLen; ++j)
    product.at[j] = from_float<T>(silu_mul<T>(to_float(gate.at[j]), to_float(up.at[j])));
  store_pack(out + static_cast<size_t>(blockIdx.x) * inner + i, product);
}

#define SILU_MUL(NAME, T)                                    \
  extern "C" __global__ void __launch_bounds__(kSiluThreads) \
      NAME(const T* gate_up, T* out, int inner) {            \
    silu_mul_row<T>(gate_up, out, inner);                    \
  }                                                          \
  SIMT_EXPORT(NAME)

SILU_MUL(silu_mul_f32, float)
SILU_MUL(silu_mul_f16, f16)
SILU_MUL(silu_mul_bf16, bf16)
