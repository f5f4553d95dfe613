// Attention of single query tokens over a paged cache, in splits of 256 keys, and their merge.
//
//   q             rows of q_stride elements of T, in each the heads [num_heads, head_dim]
//   k, v          [num_blocks, num_kv_heads, block_size, head_dim]  T
//   row           [num_items]      row of q and of out
//   kv_len        [num_items]      keys that the item sees; 0: none, and nothing is written
//   table_start   [num_items]      where its block table begins in block_tables
//   split_start   [num_items + 1]  running number of splits, ceil(kv_len / 256) an item
//   partials      [units, num_heads, head_dim + 4]  f32: sum of p * v, maximum, sum of p, unused
//   out           [rows, num_heads * head_dim]  T
//
// A unit is one split of one item. Block (x, y) takes units x, x + gridDim.x, ... of K/V head
// y / slices and up to eight of the query heads that share it, so that a byte of K or V is read
// once for all of them. How many units there are is read from split_start: a graph replays its
// launch with other lengths. The block's warps take the unit's tiles in turn and merge what they
// have in the order of the warps, then the splits are merged in an order that their number gives,
// so the bits of a result depend on the item's own q, K and V alone.
//
// Two bodies. Tensor cores, for two bytes and a head_dim of 64 or 128: not for the FLOPs, of which
// there are few, but for instructions. A tile of 16 tokens is K [16, D] * q^T [D, 8 heads]
// and V^T [D, 16] * p^T [16, 8]: 2 * D / 16 products in place of 16 * 2 * D * heads / 32
// multiplications with their widening and shuffles. Columns of K and rows of V are dealt to the
// fragments so that each lane loads what it multiplies, 16 bytes at once, from memory to registers:
// no shared memory, no barrier and no shuffle of K or V. A warp asks for a tile at once, 8 KiB at
// head_dim 128, while it is busy with the one before, so a multiprocessor with two blocks (128
// registers) has up to 128 KiB in flight where an H100 needs some 20 (3.35 TB/s * 800 ns / 132).
// Plain arithmetic (decode_unit.cuh) for everything else: right, and not fast.
//
// Bytes: kv_len * num_kv_heads * head_dim * 2 * sizeof(T) an item, some KiB a unit of q and tables,
// and (head_dim + 4) * 4 written and read per split and head. FLOPs: 4 * head_dim a key and head.
#include "decode_unit.cuh"
#include "mma.cuh"

constexpr int kSplit = 256;
constexpr int kMergeThreads = 256;

// The last item that starts at `unit` or before: items without splits start where the next does.
__device__ inline int find_item(const int* split_start, int num_items, int unit) {
  const int lane = threadIdx.x & 31;
  int first = 0, len = num_items;
  while (len > 1) {
    const int step = (len + 31) / 32, at = lane * step;
    const bool before = at < len && split_start[first + at] <= unit;
    const int last = __popc(__ballot_sync(0xffffffffu, before)) - 1;
    first += last * step;
    len = min(step, len - last * step);
  }
  return first;
}

template <typename T>
__device__ Unit find_unit(const Attention<T>& a, int unit) {
  const int lane = threadIdx.x & 31;
  const int group = a.num_heads / a.num_kv_heads, slices = (group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.y / slices, slice = blockIdx.y % slices;
  Unit u;
  u.item = find_item(a.split_start, a.num_items, unit);
  const int start = a.split_start[u.item], first = (unit - start) * kSplit;
  u.len = __shfl_sync(0xffffffffu, min(a.kv_len[u.item] - first, kSplit), 0);
  u.first_head = kv_head * group + slice * kHeads;
  u.heads = min(group - slice * kHeads, kHeads);
  u.kv_row = 0;
  if (lane * 8 < u.len) {
    const int token = first + lane * 8, index = token / a.block_size;
    const int block = a.block_tables[a.table_start[u.item] + index];
    u.kv_row = (block * a.num_kv_heads + kv_head) * a.block_size + token - index * a.block_size;
  }
  return u;
}

// 16 bytes that are read once, so not kept in L1; zeros where there is nothing to read.
__device__ inline void load_or_zeros(uint32_t (&to)[4], const void* from, bool there) {
#ifdef SIMT_HOST
  std::memset(to, 0, sizeof to);
  if (there) std::memcpy(to, from, sizeof to);
#else
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "setp.ne.b32 there, %5, 0;\n"
      "mov.b32 %0, 0;\n"
      "mov.b32 %1, 0;\n"
      "mov.b32 %2, 0;\n"
      "mov.b32 %3, 0;\n"
      "@there ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(to[0]), "=&r"(to[1]), "=&r"(to[2]), "=&r"(to[3])
      : "l"(from), "r"(static_cast<int>(there)));
#endif
}

// From shared memory, each time anew: the compiler does not keep it in registers.
__device__ inline uint4 load_again(const uint4* from) {
#ifdef SIMT_HOST
  return *from;
#else
  uint4 to;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from)))
               : "memory");
  return to;
#endif
}

template <typename T>
__device__ inline float half_of_pair(uint32_t pair, int half) {
  return to_float(reinterpret_cast<const T*>(&pair)[half]);
}

// On tensor cores. g = lane / 4, t = lane % 4. Of a tile's keys a lane has tokens g and g + 8, of
// each 32 columns those from 8 * t; of its values tokens 2t, 2t + 1, 2t + 8 and 2t + 9, of each 64
// columns those from 8 * g. Scores and sums of p * v lie in the lanes of the same two heads, 2t and
// 2t + 1, so a new maximum is where it is needed.
template <typename T, int D>
struct TensorCores {
  static constexpr int kWarps = 8, kTile = 16;
  static constexpr int kKeyParts = D / 32, kValueParts = D / 64;

  const Attention<T>& a;
  const Unit& u;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  uint4* q;  // shared memory: head g, of each 32 columns those from 8t
  uint32_t k[2][kKeyParts][4];
  uint32_t v[4][kValueParts][4];
  float sums[kValueParts][4][4];  // of p * v, [..][i]: columns 2i and 2i + 1, both heads of each
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

  // Puts q where the sums of the warp will be: each lane its own part for itself, as it would take
  // 16 registers. Columns of the products past the last head are never stored, whatever they are.
  __device__ TensorCores(const Attention<T>& a_, const Unit& u_, int warp, float* rows)
      : a(a_), u(u_), q(reinterpret_cast<uint4*>(rows) + lane) {
    const T* from = a.q + static_cast<size_t>(a.row[u.item]) * a.q_stride + (u.first_head + g) * D;
    uint32_t query[kKeyParts][4];
#pragma unroll
    for (int i = 0; i < kKeyParts; ++i)
      load_or_zeros(query[i], from + t * 8 + i * 32, g < u.heads);
    load(warp);
#pragma unroll
    for (int i = 0; i < kKeyParts; ++i)
      q[i * 32] = uint4{query[i][0], query[i][1], query[i][2], query[i][3]};
#pragma unroll
    for (int i = 0; i < kValueParts * 16; ++i) sums[i / 16][i / 4 % 4][i % 4] = 0;
  }

  __device__ void load(int tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = __shfl_sync(0xffffffffu, u.kv_row, tile * 2 + half);
      const int left = u.len - tile * kTile - half * 8;  // tokens from that row
      const T* key = a.k + static_cast<size_t>(row + g) * D + t * 8;
#pragma unroll
      for (int i = 0; i < kKeyParts; ++i) load_or_zeros(k[half][i], key + i * 32, g < left);
      const T* value = a.v + static_cast<size_t>(row + t * 2) * D + g * 8;
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const T* from = value + odd * D;
        const bool there = t * 2 + odd < left;
#pragma unroll
        for (int i = 0; i < kValueParts; ++i)
          load_or_zeros(v[half * 2 + odd][i], from + i * 64, there);
      }
    }
  }

  // Scores of tokens g and g + 8, two heads of each.
  __device__ void multiply_keys(float (&scores)[4], int tile) {
    for (float& score : scores) score = 0;
#pragma unroll
    for (int i = 0; i < kKeyParts; ++i) {
      const uint4 query = load_again(q + i * 32);
      const uint32_t low[4] = {k[0][i][0], k[1][i][0], k[0][i][1], k[1][i][1]};
      const uint32_t high[4] = {k[0][i][2], k[1][i][2], k[0][i][3], k[1][i][3]};
      mma<T>(scores, low, query.x, query.y);
      mma<T>(scores, high, query.z, query.w);
    }
    for (int i = 0; i < 4; ++i)
      if (tile * kTile + i / 2 * 8 + g >= u.len) scores[i] = -INFINITY;
  }

  // Turns scores into p^T as the product takes it: of head g, tokens 2t, 2t + 1 and 8 further.
  __device__ void weigh(float (&scores)[4], uint32_t (&p)[2]) {
    for (int head = 0; head < 2; ++head) {
      float top = fmaxf(scores[head], scores[head + 2]);
      for (int offset = 4; offset < 32; offset <<= 1)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
      top = fmaxf(top, most[head]);
      const float fade = fast_exp2((most[head] - top) * a.scale);
      most[head] = top;
      total[head] *= fade;
#pragma unroll
      for (auto& part : sums)
#pragma unroll
        for (auto& pair : part) {
          pair[head] *= fade;
          pair[head + 2] *= fade;
        }
      for (int i = head; i < 4; i += 2) scores[i] = fast_exp2((scores[i] - top) * a.scale);
    }
    for (int half = 0; half < 2; ++half) {
      const uint32_t pair = pack_pair<T>(scores[half * 2], scores[half * 2 + 1]);
      // What is summed is what is multiplied with: the weights that V gets add up to one.
      for (int head = 0; head < 2; ++head) total[head] += half_of_pair<T>(pair, head);
      // Token 2t lies in the lanes 8t + .., two heads in each.
      const uint32_t even = __shfl_sync(0xffffffffu, pair, t * 8 + g / 2);
      const uint32_t odd = __shfl_sync(0xffffffffu, pair, t * 8 + 4 + g / 2);
      p[half] = __byte_perm(even, odd, g % 2 ? 0x7632 : 0x5410);
    }
  }

  __device__ void multiply_values(const uint32_t (&p)[2]) {
#pragma unroll
    for (int j = 0; j < kValueParts; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t values[4] = {__byte_perm(v[0][j][i], v[1][j][i], 0x5410),
                                    __byte_perm(v[0][j][i], v[1][j][i], 0x7632),
                                    __byte_perm(v[2][j][i], v[3][j][i], 0x5410),
                                    __byte_perm(v[2][j][i], v[3][j][i], 0x7632)};
        mma<T>(sums[j][i], values, p[0], p[1]);
      }
    }
  }

  // `rows` of shared memory, one a head.
  __device__ void store(float* rows) {
    // The rows lie where other lanes had their q. Products and shuffles since have kept the warp
    // together, but only this says so.
    __syncwarp();
    for (int head = 0; head < 2; ++head) {
      float sum = total[head];
      for (int offset = 4; offset < 32; offset <<= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (t * 2 + head >= u.heads) continue;
      float* to = rows + (t * 2 + head) * warp_row(D);
#pragma unroll
      for (int j = 0; j < kValueParts; ++j) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          Quad<float> quad;
          for (int e = 0; e < 4; ++e) quad.at[e] = sums[j][i + e / 2][head + e % 2 * 2];
          store_quad(to + j * 64 + g * 8 + i * 2, quad);
        }
      }
      if (g == 0) {
        to[D] = most[head] * a.scale;
        to[D + 1] = sum;
      }
    }
  }

  // Tiles `warp`, `warp + kWarps` and so on of the unit.
  static __device__ void run(const Attention<T>& a, const Unit& u, int warp, float* rows) {
    TensorCores state(a, u, warp, rows);
    // The next tile is under way while this one is multiplied: 16 loads a lane at head_dim 128.
#pragma unroll 1
    for (int tile = warp; tile * kTile < u.len; tile += kWarps) {
      float scores[4];
      uint32_t p[2];
      state.multiply_keys(scores, tile);
      state.weigh(scores, p);
      state.multiply_values(p);
      state.load(tile + kWarps);
    }
    state.store(rows);
  }
};

// Joins what the first `count` warps have made of the unit's heads.
template <int kThreads, typename T>
__device__ void join_warps(const Attention<T>& a, const Unit& u, int unit, int count,
                           const float* rows) {
  const bool whole = a.split_start[u.item + 1] - a.split_start[u.item] == 1;
  const int quads = a.head_dim / 4, width = warp_row(a.head_dim);
  const int stride = warp_floats(u.heads, a.head_dim);
  for (int i = threadIdx.x; i < u.heads * quads; i += kThreads) {
    const int head = i / quads, column = i % quads * 4;
    const float* row = rows + head * width;
    float most = -INFINITY, total = 0, sums[4] = {};
    for (int warp = 0; warp < count; ++warp) most = fmaxf(most, row[warp * stride + a.head_dim]);
    for (int warp = 0; warp < count; ++warp) {
      const float* part = row + warp * stride;
      const float weight = exp2f(part[a.head_dim] - most);
      total += weight * part[a.head_dim + 1];
      const Pack<float> pack = load_pack(part + column);
      for (int j = 0; j < 4; ++j) sums[j] += weight * pack.at[j];
    }
    const int out_head = u.first_head + head;
    if (whole) {
      Quad<T> quad;
      for (int j = 0; j < 4; ++j) quad.at[j] = from_float<T>(sums[j] / total);
      const size_t to = static_cast<size_t>(a.row[u.item]) * a.num_heads + out_head;
      store_quad(a.out + to * a.head_dim + column, quad);
    } else {
      const size_t to = static_cast<size_t>(unit) * a.num_heads + out_head;
      float* partial = a.partials + to * (a.head_dim + 4);
      store_quad(partial + column, Quad<float>{{sums[0], sums[1], sums[2], sums[3]}});
      if (column == 0) {
        partial[a.head_dim] = most;
        partial[a.head_dim + 1] = total;
      }
    }
  }
}

template <class Body, typename T>
__device__ void decode_attention(const Attention<T>& a) {
  DYNAMIC_SHARED(float, shared);  // [warps, warp_floats]
  // Taken from one lane, here and for len, so that the compiler sees that a warp stays together:
  // without, every shuffle has a branch for strays, and 128 registers spill.
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) >> 5, 0);
  for (int unit = blockIdx.x; unit < a.split_start[a.num_items]; unit += gridDim.x) {
    const Unit u = find_unit(a, unit);
    const int count = min(Body::kWarps, (u.len + Body::kTile - 1) / Body::kTile);
    if (warp < count) Body::run(a, u, warp, shared + warp * warp_floats(u.heads, a.head_dim));
    __syncthreads();
    join_warps<Body::kWarps * 32>(a, u, unit, count, shared);
    __syncthreads();
  }
}

// One item and head a block. A row of head_dim / 4 threads takes every rows-th split; what the rows
// have is joined in their order, so the order depends on the number of splits alone.
template <typename T>
__device__ void merge(const float* partials, const int* row, const int* split_start, T* out,
                      int num_heads, int head_dim) {
  constexpr int kMaxRows = 32;
  __shared__ float stats[kMaxRows][2];
  __shared__ float parts[kMergeThreads * 4];
  const int item = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
  const int first = split_start[item], splits = split_start[item + 1] - first;
  if (splits < 2) return;
  const int quads = head_dim / 4, rows = min(min(kMergeThreads / quads, kMaxRows), splits);
  const int mine = thread / quads, column = thread % quads * 4;
  const size_t stride = static_cast<size_t>(num_heads) * (head_dim + 4);
  if (mine < rows) {
    const float* from = partials + first * stride + static_cast<size_t>(head) * (head_dim + 4);
    float most = -INFINITY, total = 0, sums[4] = {};
#pragma unroll 4
    for (int split = mine; split < splits; split += rows) {
      const float* partial = from + split * stride;
      const Pack<float> part = load_pack(partial + column), stat = load_pack(partial + head_dim);
      const float top = fmaxf(most, stat.at[0]);
      const float fade = exp2f(most - top), weight = exp2f(stat.at[0] - top);
      most = top;
      total = total * fade + stat.at[1] * weight;
      for (int j = 0; j < 4; ++j) sums[j] = sums[j] * fade + part.at[j] * weight;
    }
    store_quad(parts + mine * head_dim + column, Quad<float>{{sums[0], sums[1], sums[2], sums[3]}});
    if (column == 0) {
      stats[mine][0] = most;
      stats[mine][1] = total;
    }
  }
  __syncthreads();
  if (thread >= head_dim) return;
  float most = -INFINITY, total = 0, sum = 0;
  for (int i = 0; i < rows; ++i) most = fmaxf(most, stats[i][0]);
  for (int i = 0; i < rows; ++i) {
    const float weight = exp2f(stats[i][0] - most);
    total += weight * stats[i][1];
    sum += weight * parts[i * head_dim + thread];
  }
  const size_t to = static_cast<size_t>(row[item]) * num_heads + head;
  out[to * head_dim + thread] = from_float<T>(sum / total);
}

#define DECODE_ATTENTION(NAME, T, THREADS, BLOCKS, ...)                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                   \
      NAME(const T* q, const T* k, const T* v, const int* row, const int* kv_len,                 \
           const int* table_start, const int* split_start, const int* block_tables,               \
           float* partials, T* out, int q_stride, int num_items, int num_heads, int num_kv_heads, \
           int head_dim, int block_size, float scale) {                                           \
    decode_attention<__VA_ARGS__>(Attention<T>{                                                   \
        q, k, v, row, kv_len, table_start, split_start, block_tables, partials, out, q_stride,    \
        num_items, num_heads, num_kv_heads, head_dim, block_size, scale});                        \
  }                                                                                               \
  SIMT_EXPORT(NAME)

DECODE_ATTENTION(decode_attention_f32, float, 128, 1, Plain<float>)
DECODE_ATTENTION(decode_attention_f16, f16, 128, 1, Plain<f16>)
DECODE_ATTENTION(decode_attention_bf16, bf16, 128, 1, Plain<bf16>)
DECODE_ATTENTION(decode_attention_64_f16, f16, 256, 2, TensorCores<f16, 64>)
DECODE_ATTENTION(decode_attention_64_bf16, bf16, 256, 2, TensorCores<bf16, 64>)
DECODE_ATTENTION(decode_attention_128_f16, f16, 256, 2, TensorCores<f16, 128>)
DECODE_ATTENTION(decode_attention_128_bf16, bf16, 256, 2, TensorCores<bf16, 128>)

#define DECODE_ATTENTION_MERGE(NAME, T)                                                       \
  extern "C" __global__ void __launch_bounds__(kMergeThreads)                                 \
      NAME(const float* partials, const int* row, const int* split_start, T* out,             \
           int num_heads, int head_dim) {                                                     \
    merge<T>(partials, row, split_start, out, num_heads, head_dim);                           \
  }                                                                                           \
  SIMT_EXPORT(NAME)

DECODE_ATTENTION_MERGE(decode_attention_merge_f32, float)
DECODE_ATTENTION_MERGE(decode_attention_merge_f16, f16)
DECODE_ATTENTION_MERGE(decode_attention_merge_bf16, bf16)
