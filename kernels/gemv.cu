// Products of 1 to 4 rows: decode of few sequences, which only reads matrices.
//
//   gemv:        x [m, k] T, w [n, k] T (as nn.Linear has it)
//                out [m, n] = x w^T, by mode:
//                  kRounded  T
//                  kAdded    f32, added to what is there (the residual stream)
//                  kWide     f32 (logits)
//   gated_gemv:  w [2 * inner, k] T: the gate's rows, then those of what it gates
//                out [m, inner] T = g / (1 + exp(-g)) * u, of g and u in f32
//
// The floor is n * k * sizeof(T) bytes of w over the bandwidth; m * n * k * 2 FLOPs are nothing
// beside it: of an H100's issue slots some 20 % for m = 1, 40 % for m = 4 (instructions counted in
// the machine code: 26 and 55 for 16 bytes of w).
//
// A block of 4 warps makes 4 columns of out, and its threads share out k: thread t takes the
// 16-byte packs t, t + 128, t + 256 .. of each of the 4 rows of w, and of the rows of x. So
// - a warp reads 512 consecutive bytes of each of 4 rows, kStages packs ahead: 8 loads of 16 bytes
//   of w in flight a thread, with the 8 (m = 1) to 4 (m = 4) blocks that an SM's registers hold
//   128 to 64 KiB; by Little's law an H100 needs 3.35 TB/s * 0.8 us / 132 = 20 KiB, an L4 4 KiB;
// - small n has enough blocks: n = 3072 are 768, 5.8 for each SM of an H100, and up to m = 2 all
//   of them run at once, whatever k is;
// - x is read once for 4 rows of w, straight from L1, where it stays because w passes by it: no
//   copy to shared memory, no barrier before the first load, and no limit to k;
// - where out is added to, it is asked for at the start: it would be a trip to memory at the end.
// Then the 4 sums of each row of x are reduced together (6 shuffles instead of 20), and added over
// the warps.
//
// The order of a sum is a function of k alone: over a thread's packs, the lanes' tree, the warps.
// It knows neither m nor n nor the grid, so a row of a batch has the bits it has alone.
//
// Expected, not measured: 90 % of the bandwidth on L4 for all matrices of Llama 3.2 3B; 75 to 85 %
// on A100 and 60 to 75 % on H100 for those of a layer, whose 5 to 30 us hardly outlast the start
// and the end of a kernel, 85 to 90 % for the output head. What would show it wrong: an H100 below
// 60 % at n = 16384 lacks bytes in flight (raise kStages), and m = 4 far below m = 1 lacks issue
// slots.
#include "silu.cuh"
#include "stream.cuh"

constexpr int kGemvThreads = 128;
constexpr int kGemvWarps = kGemvThreads / 32;
// Rows of w that a block multiplies; reduce_rows is made for 4.
constexpr int kGemvRows = 4;
// Packs of a row of w that a thread has asked for.
constexpr int kStages = 2;

enum GemvMode { kRounded = 0, kAdded = 1, kWide = 2 };

// Of 4 sums of every lane, the sum over the warp of number lane / 8. The tree of each is the same.
__device__ inline float reduce_rows(const float (&sums)[kGemvRows], int lane) {
  const bool upper = lane & 16, odd = lane & 8;
  float pair[2];
  for (int i = 0; i < 2; ++i) {
    const float own = upper ? sums[i + 2] : sums[i], other = upper ? sums[i] : sums[i + 2];
    pair[i] = own + __shfl_xor_sync(0xffffffffu, other, 16);
  }
  const float own = odd ? pair[1] : pair[0], other = odd ? pair[0] : pair[1];
  float sum = own + __shfl_xor_sync(0xffffffffu, other, 8);
  for (int offset = 4; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

// What a thread multiplies at once: a pack of each row of w, and of each row of x.
template <typename T, int M>
struct Stage {
  uint4 rows[kGemvRows], inputs[M];

  // Asks for the packs at `at`.
  __device__ void load(const T* const (&w)[kGemvRows], const T* x, int k, int at) {
#pragma unroll
    for (int r = 0; r < kGemvRows; ++r) rows[r] = load_once(w[r] + at);
#pragma unroll
    for (int i = 0; i < M; ++i) inputs[i] = *reinterpret_cast<const uint4*>(x + i * k + at);
  }

  __device__ void multiply(float (&sums)[M][kGemvRows]) const {
    constexpr int kLen = Pack<T>::kLen;
    float x[M][kLen];
#pragma unroll
    for (int i = 0; i < M; ++i) widen<T>(inputs[i], x[i]);
#pragma unroll
    for (int r = 0; r < kGemvRows; ++r) {
      float w[kLen];
      widen<T>(rows[r], w);
#pragma unroll
      for (int j = 0; j < kLen; ++j)
#pragma unroll
        for (int i = 0; i < M; ++i) sums[i][r] = fmaf(w[j], x[i][j], sums[i][r]);
    }
  }
};

// The products of M rows of x with 4 rows of w. Thread r * M + i < 4 * M gets row i times w[r];
// the others get nothing of meaning.
template <typename T, int M>
__device__ float dot_rows(const T* x, const T* const (&w)[kGemvRows], int k) {
  __shared__ float partial[kGemvWarps][kGemvRows * M];
  constexpr int kStep = kGemvThreads * Pack<T>::kLen;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int first = thread * Pack<T>::kLen;
  float sums[M][kGemvRows] = {};
  Stage<T, M> stages[kStages];
#pragma unroll
  for (int s = 0; s < kStages; ++s)
    if (first + s * kStep < k) stages[s].load(w, x, k, first + s * kStep);
  for (int at = first; at < k; at += kStages * kStep) {
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      const int now = at + s * kStep, next = now + kStages * kStep;
      if (now < k) stages[s].multiply(sums);
      if (next < k) stages[s].load(w, x, k, next);
    }
  }
#pragma unroll
  for (int i = 0; i < M; ++i) {
    const float sum = reduce_rows(sums[i], lane);
    if ((lane & 7) == 0) partial[warp][(lane >> 3) * M + i] = sum;
  }
  __syncthreads();
  if (thread >= kGemvRows * M) return 0;
  float sum = partial[0][thread];
  for (int other = 1; other < kGemvWarps; ++other) sum += partial[other][thread];
  return sum;
}

template <typename T, int M>
__device__ void gemv(const T* x, const T* w, void* out, int n, int k, int mode) {
  const int first = blockIdx.x * kGemvRows;
  const T* rows[kGemvRows];
#pragma unroll
  for (int r = 0; r < kGemvRows; ++r) {
    const int row = first + r < n ? first + r : n - 1;
    rows[r] = w + static_cast<size_t>(row) * k;
  }
  const int column = first + threadIdx.x / M, i = threadIdx.x % M;
  const bool stores = threadIdx.x < kGemvRows * M && column < n;
  const size_t to = static_cast<size_t>(i) * n + column;
  float* wide = static_cast<float*>(out);
  float before = 0;
  if (stores && mode == kAdded) before = wide[to];
  const float sum = dot_rows<T, M>(x, rows, k) + before;
  if (!stores) return;
  if (mode == kRounded)
    static_cast<T*>(out)[to] = from_float<T>(sum);
  else
    wide[to] = sum;
}

// A block makes 2 columns, of 2 rows of the gate and 2 of what it gates.
template <typename T, int M>
__device__ void gated_gemv(const T* x, const T* w, T* out, int inner, int k) {
  constexpr int kColumns = kGemvRows / 2;
  const int first = blockIdx.x * kColumns;
  const T* rows[kGemvRows];
#pragma unroll
  for (int r = 0; r < kGemvRows; ++r) {
    const int column = first + r % kColumns < inner ? first + r % kColumns : inner - 1;
    rows[r] = w + static_cast<size_t>(r / kColumns * inner + column) * k;
  }
  const float gate = dot_rows<T, M>(x, rows, k);
  // Sums of the gate are with the first 2 * M threads, those beside them with the next.
  const float up = __shfl_down_sync(0xffffffffu, gate, kColumns * M);
  const int column = first + threadIdx.x / M, i = threadIdx.x % M;
  if (threadIdx.x < kColumns * M && column < inner)
    out[static_cast<size_t>(i) * inner + column] = from_float<T>(silu_mul<T>(gate, up));
}

// As many blocks on an SM as leave the registers that they need.
#define GEMV(SUFFIX, T, M, BLOCKS)                                                       \
  extern "C" __global__ void __launch_bounds__(kGemvThreads, BLOCKS) gemv##M##_##SUFFIX( \
      const T* x, const T* w, void* out, int n, int k, int mode) {                       \
    gemv<T, M>(x, w, out, n, k, mode);                                                   \
  }                                                                                      \
  SIMT_EXPORT(gemv##M##_##SUFFIX)                                                        \
  extern "C" __global__ void __launch_bounds__(kGemvThreads, BLOCKS)                     \
      gated_gemv##M##_##SUFFIX(const T* x, const T* w, T* out, int inner, int k) {       \
    gated_gemv<T, M>(x, w, out, inner, k);                                               \
  }                                                                                      \
  SIMT_EXPORT(gated_gemv##M##_##SUFFIX)

#define GEMV_ROWS(SUFFIX, T) \
  GEMV(SUFFIX, T, 1, 8)      \
  GEMV(SUFFIX, T, 2, 6)      \
  GEMV(SUFFIX, T, 3, 5)      \
  GEMV(SUFFIX, T, 4, 4)

GEMV_ROWS(f32, float)
GEMV_ROWS(f16, f16)
GEMV_ROWS(bf16, bf16)
