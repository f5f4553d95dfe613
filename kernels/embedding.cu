// Rows of the embedding, widened: the start of the residual stream.
//
//   table  [vocab, hidden]  T
//   ids    [rows]           u32
//   x      [rows, hidden]   f32
//   x[r] = table[ids[r]]; an id that is not in the vocabulary gives NaN
//
// A thread loads 4 elements and stores 16 bytes, so that a warp's stores, most of the bytes, are
// whole sectors. An id below zero of a signed buffer is a large one here, hence NaN too: wrong
// tokens show, and read nothing.
// Bytes: rows * hidden * (4 + sizeof(T)).
#include "element.cuh"

constexpr int kEmbeddingThreads = 256;

template <typename T>
__device__ void embed(const T* table, const unsigned* ids, float* x, int hidden, int vocab) {
  const unsigned id = ids[blockIdx.x];
  const bool known = id < static_cast<unsigned>(vocab);
  const int i = (blockIdx.y * kEmbeddingThreads + threadIdx.x) * 4;
  if (i >= hidden) return;
  Quad<float> out = {{NAN, NAN, NAN, NAN}};
  if (known) {
    const Quad<T> in = load_quad(table + static_cast<size_t>(id) * hidden + i);
    for (int j = 0; j < 4; ++j) out.at[j] = to_float(in.at[j]);
  }
  store_quad(x + static_cast<size_t>(blockIdx.x) * hidden + i, out);
}

#define EMBEDDING(NAME, T)                                                         \
  extern "C" __global__ void __launch_bounds__(kEmbeddingThreads)                  \
      NAME(const T* table, const unsigned* ids, float* x, int hidden, int vocab) { \
    embed<T>(table, ids, x, hidden, vocab);                                        \
  }                                                                                \
  SIMT_EXPORT(NAME)

EMBEDDING(embedding_f32, float)
EMBEDDING(embedding_f16, f16)
EMBEDDING(embedding_bf16, bf16)
