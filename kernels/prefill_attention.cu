// Causal attention of many query tokens a sequence over the paged cache, on tensor cores.
//
//   q             [rows, q_stride]  T; the first heads * D of a row are its query heads
//   k, v          [num_blocks, kv_heads, block_size, D]  T
//   out           [rows, heads * D]  T
//   tiles         [num_tiles, 2]  sequence, and the first of its query tokens of this tile
//   query_start, query_len  [sequences]  its rows of this step
//   seq_len       [sequences]  its keys, those of this step counted
//   table_start   [sequences]  where its block table begins in block_tables
//   inverse       2^31 / (block_size / 8), rounded up
//   scale         log2(e) / sqrt(D)
//   out = softmax(q . k / sqrt(D)) v over keys 0 ..= seq_len - query_len + token
//
// Grid [num_tiles, kv_heads], 4 warps of 16 rows. Row r of a tile is query token r / group under
// head r % group of the kv head's group, so that a group reads its keys once: 21 tokens of 3
// heads. Keys come 64 at a time, from multiples of 64. FlashAttention-2 within: scores, maxima,
// sums and the output stay in f32 registers, and the exponentials, rounded to T, are the left
// operand of the second product without leaving them.
//
// A token's result depends on its own query and keys alone, bit for bit: every row starts with key
// 0, keys come by position, and keys that are all masked for a row leave it as it was (exp2 gives
// 0, the maximum stays, x * 1 + 0 is x). So chunks, neighbours and block sizes change nothing.
//
// Memory. Two buffers of 64 x D: K is fetched while the output of the keys before is multiplied, V
// while the scores are. Both double would be 64 KiB at D = 128, one block of 4 warps on an L4; at
// 32 KiB three blocks fit in its 100 KiB, and 168 registers let three run everywhere: the waits of
// one are the products of the others. Pieces of 16 bytes are kept at piece ^ (key % 8), so that
// ldmatrix and the copies meet each bank once. 8 keys from a multiple of 8 lie in one block (its
// size is one too), so lane g looks up group g, before it is needed. Slots past the last key of
// the tile are zeros in shared memory, not what lies in the cache: 0 * NaN is NaN.
//
// FLOPs: 4 * D a visible pair of key and token under a head. Bytes: K and V once for each tile of
// tokens, 2 * D * sizeof(T) a key, most of them from L2 (x is the tile, so that blocks at work
// share a head): 64 FLOPs a byte. At D = 128 a warp of sm_80 issues 569 instructions for 64 keys
// that nothing masks, of which 128 are products and keep its tensor core busy for 1024 cycles. The
// multiprocessor reads shared memory for as long (each of four warps reads all keys) and writes it
// for 256, so 80 % of the peak is the bound; an L4, whose tensor cores are half as wide, has twice
// the time. 32 rows a warp would halve the reads, for two blocks in place of three.
#include "mma.cuh"

constexpr int kWarps = 4, kThreads = kWarps * 32, kRows = kWarps * 16, kKeys = 64;

// Where piece `piece` of 8 elements of key `key` lies in a buffer.
template <int D>
__device__ inline int place(int key, int piece) {
  constexpr int kAcross = D < 64 ? D / 8 : 8;  // pieces of a key in 128 bytes, which are all banks
  return key * D + (piece ^ (key / (8 / kAcross) % kAcross)) * 8;
}

// Where piece 2 * `pair` + odd lies, if `first` is where piece `odd` of the same key does. Of a
// constant `pair` it is one instruction, which the compiler does not see in `place`.
__device__ inline int place_pair(int first, int pair) {
  return (first ^ pair % 4 * 16) + pair / 4 * 64;
}

// Starts to copy keys `first_key ..` of `cache`, 64 of them, zeros from `num_keys` on. `start` is
// where the 8 keys of group lane % 8 begin, in pieces.
template <typename T, int D>
__device__ inline void fetch(T* buffer, const T* cache, int start, int first_key, int num_keys) {
  constexpr int kPieces = D / 8, kStep = kThreads / kPieces;  // keys that the block copies at once
  // The remainder tells the compiler how large it is; with that the lanes below are constants.
  const int thread = threadIdx.x % kThreads, key = thread / kPieces;
  T* to = buffer + place<D>(key, thread % kPieces);
#pragma unroll
  for (int i = 0; i < kKeys / kStep; ++i) {
    const int group = __shfl_sync(0xffffffffu, start, key / 8 + i * (kStep / 8));
    const T* from = cache + static_cast<size_t>(group + thread % (8 * kPieces)) * 8;
    copy_async(to + i * kStep * D, from, first_key + key + i * kStep < num_keys);
  }
}

// scores = q . k over a key tile; a warp's 16 rows of q are in registers.
template <typename T, int D>
__device__ inline void multiply_keys(float (&scores)[kKeys / 8][4], const uint32_t (&q)[D / 16][4],
                                     const T* keys) {
  const int lane = threadIdx.x & 31;
  const int first = place<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int i = 0; i < kKeys / 2; ++i) scores[i / 4][i % 4] = 0;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, keys + n * 16 * D + place_pair(first, k));
      // Neighbours of b, because a product reads pairs of registers.
      mma<T>(scores[n * 2], q[k], b[0], b[1]);
      mma<T>(scores[n * 2 + 1], q[k], b[2], b[3]);
    }
  }
}

// output += weights . v over a key tile. Places in the result of a product are those of its left
// operand, so the weights are where they must be.
template <typename T, int D>
__device__ inline void multiply_values(float (&output)[D / 8][4],
                                       const uint32_t (&weights)[kKeys / 16][4], const T* values) {
  const int lane = threadIdx.x & 31, first = place<D>(lane % 16, lane / 16);
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];
      load_transposed(b, values + k * 16 * D + place_pair(first, n));
      mma<T>(output[n * 2], weights[k], b[0], b[1]);
      mma<T>(output[n * 2 + 1], weights[k], b[2], b[3]);
    }
  }
}

// The four lanes that hold parts of a row.
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The thread's number, asked for anew: nothing that follows from it is kept in a register over the
// loop.
__device__ inline int thread_again() {
#ifdef SIMT_HOST
  return threadIdx.x;
#else
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#endif
}

template <typename T, int D>
__device__ void prefill_attention(const T* q, const T* k, const T* v, T* out, const int* tiles,
                                  const int* query_start, const int* query_len, const int* seq_len,
                                  const int* table_start, const int* block_tables, int group,
                                  int q_stride, int block_size, unsigned inverse, float scale) {
  __shared__ __align__(128) T buffers[2][kKeys * D];
  T *keys = buffers[0], *values = buffers[1];
  const int lane = threadIdx.x & 31;
  const int kv_head = blockIdx.y, kv_heads = gridDim.y;
  const int sequence = tiles[blockIdx.x * 2], first_token = tiles[blockIdx.x * 2 + 1];
  const int length = query_len[sequence], tokens = min(kRows / group, length - first_token);
  const int first_seen = seq_len[sequence] - length + first_token;  // last key of the first token
  const int num_keys = first_seen + tokens;
  const int first_entry = table_start[sequence];
  // Where it stands is read again at the end, for want of a register over the loop.
  const auto row_of_token = [&](int token) {
    const int sequence = tiles[blockIdx.x * 2], first = tiles[blockIdx.x * 2 + 1];
    return static_cast<size_t>(query_start[sequence] + first + token);
  };

  // Blocks are `size` groups long; `inverse` is 2^31 / size, rounded up, which is exact here.
  const auto group_start = [&](int first_key) {
    if (first_key + lane % 8 * 8 >= num_keys) return 0;
    const unsigned of_8 = first_key / 8 + lane % 8, size = block_size / 8;
    const unsigned entry = static_cast<uint64_t>(of_8 * 2) * inverse >> 32;
    const unsigned head = block_tables[first_entry + entry] * kv_heads + kv_head;
    return static_cast<int>((head * size + of_8 - entry * size) * D);
  };
  int start = group_start(0);
  fetch<T, D>(keys, k, start, 0, num_keys);

  // A lane holds parts of two rows of its warp's 16.
  const auto row_of = [](int half) {
    const int thread = thread_again();
    return thread / 32 * 16 + half * 8 + thread % 32 / 4;
  };
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  uint32_t query[D / 16][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Rows past the tile's tokens repeat the last.
    const int row = row_of(half), token = min(row / group, tokens - 1);
    const int head = kv_head * group + row % group;
    // 4 bytes a lane, half a sector a row: q is read once, and a sector's other half is in L1.
    const T* from = q + row_of_token(token) * q_stride + head * D + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      query[i / 2][i % 2 * 2 + half] = *reinterpret_cast<const uint32_t*>(from + i * 8);
    }
  }

  float output[D / 8][4] = {};
  for (int first_key = 0; first_key < num_keys; first_key += kKeys) {
    wait_for_copies();
    __syncthreads();  // Keys are there for all, and nobody reads values any more.
    fetch<T, D>(values, v, start, first_key, num_keys);
    start = group_start(first_key + kKeys);

    float scores[kKeys / 8][4];
    uint32_t weights[kKeys / 16][4];
    multiply_keys<T, D>(scores, query, keys);
    if (first_key + kKeys - 1 > first_seen) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int seen = first_seen + row_of(half) / group - first_key - lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kKeys / 4; ++i) {
          if (i / 2 * 8 + i % 2 > seen) scores[i / 2][half * 2 + i % 2] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = max[half];
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) top = fmaxf(top, scores[i / 2][half * 2 + i % 2]);
      top = row_max(top);
      const float factor = fast_exp2((max[half] - top) * scale), shift = top * scale;
      max[half] = top;
      sum[half] *= factor;
#pragma unroll
      for (int i = 0; i < kKeys / 8; ++i) {
        const float low = fast_exp2(scores[i][half * 2] * scale - shift);
        const float high = fast_exp2(scores[i][half * 2 + 1] * scale - shift);
        sum[half] += low + high;
        weights[i / 2][i % 2 * 2 + half] = pack_pair<T>(low, high);
      }
#pragma unroll
      for (int i = 0; i < D / 4; ++i) output[i / 2][half * 2 + i % 2] *= factor;
    }

    wait_for_copies();
    __syncthreads();  // Values are there for all, and nobody reads keys any more.
    const int next = first_key + kKeys;
    if (next < num_keys) fetch<T, D>(keys, k, start, next, num_keys);
    multiply_values<T, D>(output, weights, values);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of(half), token = row / group, head = kv_head * group + row % group;
    const float share = 1 / row_sum(sum[half]);
    if (token >= num_keys - first_seen) continue;
    T* to = out + (row_of_token(token) * (kv_heads * group) + head) * D + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < D / 8; ++i) {
      *reinterpret_cast<uint32_t*>(to + i * 8) =
          pack_pair<T>(output[i][half * 2] * share, output[i][half * 2 + 1] * share);
    }
  }
}

// 168 and 128 registers: three blocks an SM at D = 128, four at D = 64.
#define PREFILL_ATTENTION(NAME, T, D, BLOCKS)                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads, BLOCKS) NAME(                           \
      const T* q, const T* k, const T* v, T* out, const int* tiles, const int* query_start,      \
      const int* query_len, const int* seq_len, const int* table_start, const int* block_tables, \
      int group, int q_stride, int block_size, unsigned inverse, float scale) {                  \
    prefill_attention<T, D>(q, k, v, out, tiles, query_start, query_len, seq_len, table_start,   \
                            block_tables, group, q_stride, block_size, inverse, scale);          \
  }                                                                                              \
  SIMT_EXPORT(NAME)

PREFILL_ATTENTION(prefill_attention_16_f16, f16, 16, 4)
PREFILL_ATTENTION(prefill_attention_16_bf16, bf16, 16, 4)
PREFILL_ATTENTION(prefill_attention_32_f16, f16, 32, 4)
PREFILL_ATTENTION(prefill_attention_32_bf16, bf16, 32, 4)
PREFILL_ATTENTION(prefill_attention_64_f16, f16, 64, 4)
PREFILL_ATTENTION(prefill_attention_64_bf16, bf16, 64, 4)
PREFILL_ATTENTION(prefill_attention_128_f16, f16, 128, 3)
PREFILL_ATTENTION(prefill_attention_128_bf16, bf16, 128, 3)
