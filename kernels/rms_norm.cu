// Root mean square norm of the residual stream, rounded to what the next matrix multiplies.
//
//   x       [.., hidden]    f32
//   index   [rows]          i32, or null
//   weight  [hidden]        f32
//   out     [rows, hidden]  T
//   out[r] = y * weight / sqrt(mean(y^2) + eps), y = x[index[r]], or x[r] where index is null
//
// One block a row. The residual stream is f32 and the matrices add to it themselves (beta = 1 in
// the product), so there is no sum to fuse here and nothing is rounded between two layers. The
// index is for the output head, which multiplies the last row of each sequence and no other.
//
// At batch 1 this is one block and nothing but latency. So the weights are asked for together with
// the row, not after the barrier, and both wait in registers: one trip to memory instead of two.
// Rows longer than kHeld passes read their rest twice, the second time from cache.
// Bytes: rows * hidden * (4 + sizeof(T)) + hidden * 4; about 5 FLOPs an element.
#include "element.cuh"

constexpr int kNormThreads = 256;
// Passes whose values stay in registers: rows of up to 4096.
constexpr int kHeld = 4;

template <typename T>
__device__ void store_normed(T* to, const Quad<float>& x, const Quad<float>& weight, float scale) {
  Quad<T> out;
  for (int j = 0; j < 4; ++j) out.at[j] = from_float<T>(x.at[j] * scale * weight.at[j]);
  store_quad(to, out);
}

template <typename T>
__device__ void rms_norm(const float* x, const int* index, const float* weight, T* out, int hidden,
                         float eps) {
  __shared__ float partial[kNormThreads / 32];
  const int source = index ? index[blockIdx.x] : blockIdx.x;
  const float* row = x + static_cast<size_t>(source) * hidden;
  T* to = out + static_cast<size_t>(blockIdx.x) * hidden;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int first = thread * 4, step = kNormThreads * 4;
  Quad<float> held[kHeld], weights[kHeld];
#pragma unroll
  for (int pass = 0; pass < kHeld; ++pass) {
    const int i = first + pass * step;
    if (i < hidden) {
      held[pass] = load_quad(row + i);
      weights[pass] = load_quad(weight + i);
    }
  }
  float sum = 0;
#pragma unroll
  for (int pass = 0; pass < kHeld; ++pass)
    if (first + pass * step < hidden)
      for (int j = 0; j < 4; ++j) sum += held[pass].at[j] * held[pass].at[j];
  for (int i = first + kHeld * step; i < hidden; i += step) {
    const Quad<float> more = load_quad(row + i);
    for (int j = 0; j < 4; ++j) sum += more.at[j] * more.at[j];
  }
  sum = warp_sum(sum);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  sum = warp_sum(lane < kNormThreads / 32 ? partial[lane] : 0.f);
  const float scale = rsqrtf(sum / hidden + eps);
#pragma unroll
  for (int pass = 0; pass < kHeld; ++pass) {
    const int i = first + pass * step;
    if (i < hidden) store_normed(to + i, held[pass], weights[pass], scale);
  }
  for (int i = first + kHeld * step; i < hidden; i += step)
    store_normed(to + i, load_quad(row + i), load_quad(weight + i), scale);
}

#define RMS_NORM(NAME, T)                                                                          \
  extern "C" __global__ void __launch_bounds__(kNormThreads)                                       \
      NAME(const float* x, const int* index, const float* weight, T* out, int hidden, float eps) { \
    rms_norm<T>(x, index, weight, out, hidden, eps);                                               \
  }                                                                                                \
  SIMT_EXPORT(NAME)

RMS_NORM(rms_norm_f32, float)
RMS_NORM(rms_norm_f16, f16)
RMS_NORM(rms_norm_bf16, bf16)
