// What decode_attention.cu works on, and the body that serves every type and size.
#pragma once

#include "element.cuh"

// Query heads of a block.
constexpr int kHeads = 8;

template <typename T>
struct Attention {
  const T *q, *k, *v;
  const int *row, *kv_len, *table_start, *split_start, *block_tables;
  float* partials;
  T* out;
  int q_stride, num_items, num_heads, num_kv_heads, head_dim, block_size;
  float scale;  // log2(e) / sqrt(head_dim): p = 2^(scale * (score - maximum))
};

// What a block does with one unit.
struct Unit {
  int item, len;          // keys of the split
  int first_head, heads;  // query heads
  int kv_row;             // row of the cache where 8 tokens of the split begin, others in each lane
};

// Floats of shared memory for what a warp has made of a head: sum of p * v, maximum, sum of p. The
// rest spreads two heads over other banks.
__device__ inline int warp_row(int head_dim) { return head_dim + 8; }

// Floats of shared memory of a warp: a row a head, and before that 16 bytes of q a lane and part.
__device__ inline int warp_floats(int heads, int head_dim) {
  return max(heads * warp_row(head_dim), head_dim * 4);
}

// One token a warp and step, eight columns a lane.
template <typename T>
struct Plain {
  static constexpr int kWarps = 4, kTile = 1;

  static __device__ void load(float (&to)[8], const T* from, bool there) {
    for (int i = 0; i < 8; i += Pack<T>::kLen) {
      const Pack<T> pack = there ? load_pack(from + i) : Pack<T>{};
      for (int j = 0; j < Pack<T>::kLen; ++j) to[i + j] = to_float(pack.at[j]);
    }
  }

  static __device__ void run(const Attention<T>& a, const Unit& u, int warp, float* rows) {
    const int lane = threadIdx.x & 31, column = lane * 8;
    const bool there = column < a.head_dim;
    float q[kHeads][8], sums[kHeads][8], most[kHeads], total[kHeads];
    const T* from = a.q + static_cast<size_t>(a.row[u.item]) * a.q_stride + column;
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      load(q[head], from + (u.first_head + head) * a.head_dim, there && head < u.heads);
      for (float& sum : sums[head]) sum = 0;
      most[head] = -INFINITY;
      total[head] = 0;
    }
    for (int token = warp; token < u.len; token += kWarps) {
      const int row = __shfl_sync(0xffffffffu, u.kv_row, token / 8) + token % 8;
      const size_t at = static_cast<size_t>(row) * a.head_dim + column;
      float k[8], v[8];
      load(k, a.k + at, there);
      load(v, a.v + at, there);
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        if (head >= u.heads) break;
        float score = 0;
        for (int i = 0; i < 8; ++i) score += q[head][i] * k[i];
        score = warp_sum(score) * a.scale;
        const float top = fmaxf(most[head], score);
        const float fade = exp2f(most[head] - top), p = exp2f(score - top);
        most[head] = top;
        total[head] = total[head] * fade + p;
        for (int i = 0; i < 8; ++i) sums[head][i] = sums[head][i] * fade + p * v[i];
      }
    }
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      if (head >= u.heads) break;
      float* to = rows + head * warp_row(a.head_dim);
      if (there)
        for (int i = 0; i < 8; ++i) to[column + i] = sums[head][i];
      if (lane == 0) {
        to[a.head_dim] = most[head];
        to[a.head_dim + 1] = total[head];
      }
    }
  }
};
