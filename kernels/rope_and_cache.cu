// Rotary position embedding of q and k, and the write of k and v to their slots of the cache.
//
//   qkv           [rows, q_heads + 2 * kv_heads, head_dim]  T: q rotated in place, the rest stays
//   k_cache       [num_blocks, kv_heads, block_size, head_dim]  T
//   v_cache       the same
//   angles        [max_len][2][head_dim / 2]  f32: cosines of a position, then its sines
//   bias          [q_heads + 2 * kv_heads, head_dim]  f32, added to qkv first; or null
//   positions     [rows]  i32
//   slot_mapping  [rows]  i32: block * block_size + offset; -1: a padding row, nothing is written
//   (a, b) = elements (i, i + head_dim / 2) of a head -> (a cos - b sin, b cos + a sin), in f32,
//   rounded once
//
// One block a row, one thread for 16 bytes of a head's first half and the 16 bytes of its second
// half that are rotated against them; a head of v is copied by the same pairs. With as many
// threads as a row has pairs (320 for Llama 3.2 3B), a row is one pass: all of its loads are in
// flight at once, and the angles, which all heads share, come from L1. k is not written back,
// since attention reads it from the cache: that saves 2 * kv_heads / (2 * q_heads + 4 * kv_heads)
// of the traffic beside writing it.
// Bytes: rows * head_dim * sizeof(T) * (2 * q_heads + 4 * kv_heads) + rows * (4 * head_dim + 8),
// 16.9 KiB a row of the 3B in bf16; 3 FLOPs a rotated element. At decode it is latency: position,
// then angle, then store.
#include "element.cuh"

constexpr int kRopeThreads = 512;

template <typename T>
struct Halves {
  Pack<T> first, second;
};

// `angles` and `bias` are those of the first half, or null; `half` elements on are those of the other.
template <typename T>
__device__ Halves<T> rotated(const Halves<T>& in, const float* angles, const float* bias, int half) {
  Halves<T> out;
#pragma unroll
  for (int i = 0; i < Pack<T>::kLen; i += 4) {
    Quad<float> cosine = {{1, 1, 1, 1}}, sine = {}, first = {}, second = {};
    if (angles) cosine = load_quad(angles + i), sine = load_quad(angles + half + i);
    if (bias) first = load_quad(bias + i), second = load_quad(bias + half + i);
    for (int j = 0; j < 4; ++j) {
      const float a = to_float(in.first.at[i + j]) + first.at[j];
      const float b = to_float(in.second.at[i + j]) + second.at[j];
      out.first.at[i + j] = from_float<T>(a * cosine.at[j] - b * sine.at[j]);
      out.second.at[i + j] = from_float<T>(b * cosine.at[j] + a * sine.at[j]);
    }
  }
  return out;
}

template <typename T>
__device__ void rope_and_cache(T* qkv, T* k_cache, T* v_cache, const float* angles,
                               const float* bias, const int* positions, const int* slot_mapping,
                               int q_heads, int kv_heads, int head_dim, int block_size) {
  const int slot = slot_mapping[blockIdx.x];
  if (slot < 0) return;
  const int position = positions[blockIdx.x];
  const int half = head_dim / 2, pairs = half / Pack<T>::kLen;
  const int heads = q_heads + 2 * kv_heads;
  T* row = qkv + static_cast<size_t>(blockIdx.x) * heads * head_dim;
  const float* angles_here = angles + static_cast<size_t>(position) * head_dim;
  // Of the slot in the first head of its block: [block, kv_heads, block_size, head_dim].
  const int block = slot / block_size, offset = slot % block_size;
  const size_t base = (static_cast<size_t>(block) * kv_heads * block_size + offset) * head_dim;
  for (int pair = threadIdx.x; pair < heads * pairs; pair += blockDim.x) {
    const int head = pair / pairs, i = pair % pairs * Pack<T>::kLen;
    T* from = row + head * head_dim + i;
    const float* turned_by = head < q_heads + kv_heads ? angles_here + i : nullptr;
    const Halves<T> value = rotated(Halves<T>{load_pack(from), load_pack(from + half)}, turned_by,
                                    bias ? bias + head * head_dim + i : nullptr, half);
    T* to = from;
    if (head >= q_heads) {
      const bool is_k = head < q_heads + kv_heads;
      const int kv_head = head - q_heads - (is_k ? 0 : kv_heads);
      to = (is_k ? k_cache : v_cache) + base +
           static_cast<size_t>(kv_head) * block_size * head_dim + i;
    }
    store_pack(to, value.first);
    store_pack(to + half, value.second);
  }
}

#define ROPE_AND_CACHE(NAME, T)                                                             \
  extern "C" __global__ void __launch_bounds__(kRopeThreads)                                \
      NAME(T* qkv, T* k_cache, T* v_cache, const float* angles, const float* bias,          \
           const int* positions, const int* slot_mapping, int q_heads, int kv_heads,        \
           int head_dim, int block_size) {                                                  \
    rope_and_cache<T>(qkv, k_cache, v_cache, angles, bias, positions, slot_mapping, q_heads, \
                      kv_heads, head_dim, block_size);                                      \
  }                                                                                         \
  SIMT_EXPORT(NAME)

ROPE_AND_CACHE(rope_and_cache_f32, float)
ROPE_AND_CACHE(rope_and_cache_f16, f16)
ROPE_AND_CACHE(rope_and_cache_bf16, bf16)
