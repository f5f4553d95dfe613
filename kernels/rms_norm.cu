// Root mean square norm of the residual stream, rounded to what the next matrix multiplies.
//
//   x       [rows, hidden]  f32
//   weight  [hidden]        f32
//   out     [rows, hidden]  T
//   out = x * weight / sqrt(mean(x^2) + eps)
//
// One block a row. The residual stream is f32 and the matrices add to it themselves (beta = 1 in
// the product), so there is no sum to fuse here and nothing is rounded between two layers.
// Bytes: rows * hidden * (4 + sizeof(T)) + hidden * 4; the second pass finds the row in cache.
#include "element.cuh"

constexpr int kNormThreads = 256;

template <typename T>
__device__ void rms_norm(const float* x, const float* weight, T* out, int hidden, float eps) {
  __shared__ float partial[kNormThreads / 32];
  const float* row = x + static_cast<size_t>(blockIdx.x) * hidden;
  T* to = out + static_cast<size_t>(blockIdx.x) * hidden;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  float sum = 0;
  for (int i = thread * 4; i < hidden; i += kNormThreads * 4) {
    const Pack<float> pack = load_pack(row + i);
    for (int j = 0; j < 4; ++j) sum += pack.at[j] * pack.at[j];
  }
  sum = warp_sum(sum);
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  sum = warp_sum(lane < kNormThreads / 32 ? partial[lane] : 0.f);
  const float scale = rsqrtf(sum / hidden + eps);
  for (int i = thread * 4; i < hidden; i += kNormThreads * 4) {
    const Pack<float> pack = load_pack(row + i), weights = load_pack(weight + i);
    for (int j = 0; j < 4; ++j) to[i + j] = from_float<T>(pack.at[j] * scale * weights.at[j]);
  }
}

#define RMS_NORM(NAME, T)                                                                       \
  extern "C" __global__ void __launch_bounds__(kNormThreads)                                    \
      NAME(const float* x, const float* weight, T* out, int hidden, float eps) {                \
    rms_norm<T>(x, weight, out, hidden, eps);                                                   \
  }                                                                                             \
  SIMT_EXPORT(NAME)

RMS_NORM(rms_norm_f32, float)
RMS_NORM(rms_norm_f16, f16)
RMS_NORM(rms_norm_bf16, bf16)
