// Draws the next token of each row, the one that the CPU's sampler draws (src/infer/sampler.rs).
//
//   logits  [rows, vocab]  f32, vocab below 2^20
//   params  [rows, 16]     i32, see Params
//   out     [rows]         u32: the token, or kNotANumber where a logit is NaN
//
// One block a row. Greedy rows, and those whose largest logit is infinite, take the first of the
// largest. Else a token weighs exp((logit - max) / temperature) as a whole number of 2^-44, so that
// sums are exact and no order of threads shows in them. The tokens are ordered by rank, an integer
// that orders logits from the largest, and by id among equals. Three questions of one form, "at
// which rank does a running sum pass a target", cut to top_k (a sum of ones), cut to top_p and draw
// (sums of weights). Each is answered digit by digit, 11 bits of the rank a pass, by a histogram in
// shared memory; the drawn one of equals is then found by its id. Without cuts the draw runs in
// the order of ids: each warp sums a piece of the row, then of the piece that holds the target, ...
//
// The uniform number is the CPU's, bit by bit. Nothing here depends on a math library: a weight is
// within 1e-7 of itself on any machine, a token below 2^-45 weighs nothing, and all that is lost so
// is below 2^-24 of the mass. So another token than the CPU's is drawn only where the uniform
// number, or top_p, lies within about 2e-7 of where one token ends and the next begins. Logits that
// differ by less than 1e-16 temperatures are equals to the CPU, and are ordered here.
//
// Bytes: 4 * vocab a row and pass, the first from memory at most (the product has just written
// them), the others from L2: 0.5 MB for 128256. Passes: greedy 1; no cuts 2; else 2 + 3 for each of
// top_k, top_p and the draw (fewer where ranks span less than 2^22). A multiprocessor takes about
// 64 bytes a clock from L2, so a pass is 8000 clocks, if 20 KB are under way: 1024 threads ask for
// 32 bytes or more at once. Counted on the emulated device, of 128256 logits at temperature 1:
// millions of thread instructions 1.9 greedy, 8.1 without cuts, 14.3 top_k 40, 23.5 top_p 0.95; in
// clocks of the 128 lanes of a multiprocessor 15000, 63000, 112000 and 184000. Instructions cost
// more than bytes, so only what the cuts before have kept is weighed.
// Expected, not measured, on L4 and H100 alike: 10 us greedy, 40 without cuts, 70 top_k, 110 to 150
// top_p, for as many rows as there are multiprocessors. Equal logits wait for each other's atomics:
// a row of nothing else is several times slower.
#include "element.cuh"

typedef unsigned long long u64;

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kBinBits = 11, kBinsEach = (1 << kBinBits) / kThreads;
constexpr unsigned kAll = 0xffffffffu, kNotANumber = 0xffffffffu;
constexpr unsigned kRankOfInfinity = 0x007fffffu, kRankOfMinusInfinity = 0xff800000u;
constexpr int kOne = 44;  // A weight of one is 2^44.

enum Kind { kGreedy = 0, kDraw = 1 };  // Any other row is padding.

// One row of the parameters, src/infer/cuda/kernels/sample.rs.
struct Params {
  int kind;
  int top_k;              // 0 for none
  int top_p_low;          // halves of an f64
  int top_p_high;
  float scale_high;       // log2(e) / temperature, as a sum of two
  float scale_low;
  unsigned position_low;  // halves of a u64
  unsigned position_high;
  unsigned key[8];        // ChaCha12's, of the seed
};
static_assert(sizeof(Params) == 16 * sizeof(int));

struct Scratch {
  unsigned low[1 << kBinBits], high[1 << kBinBits];  // A bin's sum, 64 bits.
  u64 sums[2][kWarps];
  u64 random, before, inside;
  unsigned bin;
};

// Where a running sum passes `target`: what comes before that rank, and what the rank adds.
struct Reach {
  unsigned rank;
  u64 before, inside, target;
};

// Smaller for larger logits. Both zeros are one, and NaN comes before everything.
__device__ inline unsigned rank_of(float logit) {
  if (logit != logit) return 0;
  const unsigned bits = __float_as_uint(logit + 0.f);
  return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

__device__ inline float logit_of(unsigned rank) {
  return __uint_as_float(rank >> 31 ? rank : rank ^ 0x7fffffffu);
}

struct Weights {
  float max, scale_high, scale_low;

  // 2^kOne * exp((logit - max) / temperature), within 2^-24 of itself and 2 of 2^kOne.
  __device__ u64 operator()(float logit) const {
    const float distance = max - logit;
    const float bits = __fmul_rn(distance, scale_high);  // halvings
    if (!(bits < kOne + 1)) return 0;
    // What rounding took from the difference and from the product.
    const float minus = distance - max;
    const float rest = (max - (distance - minus)) - (logit + minus);
    float low = fmaf(distance, scale_high, -bits);
    low = fmaf(distance, scale_low, low);
    low = fmaf(rest, scale_high, low);
    const float whole = rintf(bits);
    const float x = (whole - bits) - low;
    // 2^x - 1 for |x| <= 1/2, the series of exp(x ln 2); what is left out is below 2^-27.
    float series = 1.52527338e-5f;
    series = fmaf(series, x, 1.54035304e-4f);
    series = fmaf(series, x, 1.33335581e-3f);
    series = fmaf(series, x, 9.61812911e-3f);
    series = fmaf(series, x, 5.55041087e-2f);
    series = fmaf(series, x, 2.40226507e-1f);
    series = fmaf(series, x, 6.93147181e-1f);
    const int fraction = static_cast<int>(rintf(series * x * 0x1p30f));
    return static_cast<u64>((1 << 30) + fraction) << (kOne - 30) >> static_cast<int>(whole);
  }

  // A rank from which on nothing weighs anything, one halving further than it must be.
  __device__ unsigned end() const { return rank_of(max - (kOne + 2) / scale_high); }
};

// The sum of what this lane and those before it hold.
__device__ inline u64 warp_through(u64 value) {
  const int lane = threadIdx.x & 31;
  for (int offset = 1; offset < 32; offset <<= 1) {
    const u64 other = __shfl_up_sync(kAll, value, offset);
    if (lane >= offset) value += other;
  }
  return value;
}

// Calls f with the logits of `from..to`, each worker with ascending ids; Ahead loads at once.
template <int Ahead, typename F>
__device__ inline void sweep(const float* row, int from, int to, int worker, int workers, F f) {
  // Rows start anywhere; 16 bytes are loaded at multiples of 16.
  const int odd = reinterpret_cast<uintptr_t>(row + from) / sizeof(float) & 3;
  const int head = min(to, from + ((4 - odd) & 3));
  const int packs = (to - head) / 4, tail = head + packs * 4;
  if (worker < head - from) f(from + worker, row[from + worker]);
  for (int first = worker; first < packs; first += workers * Ahead) {
    Pack<float> pack[Ahead];
#pragma unroll
    for (int i = 0; i < Ahead; ++i)
      if (first + i * workers < packs) pack[i] = load_pack(row + head + (first + i * workers) * 4);
#pragma unroll
    for (int i = 0; i < Ahead; ++i)
      if (first + i * workers < packs)
        for (int j = 0; j < 4; ++j) f(head + (first + i * workers) * 4 + j, pack[i].at[j]);
  }
  if (worker < to - tail) f(tail + worker, row[tail + worker]);
}

// Rank and id of the first of the largest, rank in the upper half.
__device__ inline u64 first_of_largest(Scratch& scratch, const float* row, int vocab) {
  unsigned rank = kAll, id = kAll;
  sweep<4>(row, 0, vocab, threadIdx.x, kThreads, [&](int at, float logit) {
    const unsigned own = rank_of(logit);
    if (own < rank) rank = own, id = at;
  });
  u64 best = static_cast<u64>(rank) << 32 | id;
  const auto least = [&] {
    for (int offset = 16; offset > 0; offset >>= 1) {
      const u64 other = __shfl_xor_sync(kAll, best, offset);
      best = other < best ? other : best;
    }
  };
  least();
  if ((threadIdx.x & 31) == 0) scratch.sums[0][threadIdx.x >> 5] = best;
  __syncthreads();
  best = scratch.sums[0][threadIdx.x & 31];
  least();
  return best;
}

// Adds 64 bits by atomics of 32, which are those that shared memory has: the carry is whosever
// addition made it.
__device__ inline void add(Scratch& scratch, unsigned bin, u64 value) {
  const unsigned low = static_cast<unsigned>(value);
  const unsigned old = atomicAdd(&scratch.low[bin], low);
  const unsigned high = static_cast<unsigned>(value >> 32) + (old + low < old);
  if (high != 0) atomicAdd(&scratch.high[bin], high);
}

// The rank of `low..=high` at which the sum of what `weigh` gives passes what `target_of` makes of
// the whole sum. Bins are zero before and after.
template <typename Weigh, typename Target>
__device__ inline Reach reach(Scratch& scratch, const float* row, int vocab, unsigned low,
                              unsigned high, Weigh weigh, Target target_of) {
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  Reach at = {low, 0, 0, 0};
  for (bool all = true;; all = false) {
    const unsigned span = high - at.rank;
    const int shift = max(0, 32 - kBinBits - __clz(span));
    sweep<2>(row, 0, vocab, thread, kThreads, [&](int, float logit) {
      const unsigned offset = rank_of(logit) - at.rank;
      if (offset <= span) add(scratch, offset >> shift, weigh(logit));
    });
    __syncthreads();
    u64 own[kBinsEach], sum = 0;
    for (int i = 0; i < kBinsEach; ++i) {
      const int bin = thread * kBinsEach + i;
      own[i] = static_cast<u64>(scratch.high[bin]) << 32 | scratch.low[bin];
      scratch.high[bin] = scratch.low[bin] = 0;
      sum += own[i];
    }
    const u64 through = warp_through(sum);
    if (lane == 31) scratch.sums[0][warp] = through;
    __syncthreads();
    const u64 warps_through = warp_through(scratch.sums[0][lane]);
    if (all) at.target = target_of(__shfl_sync(kAll, warps_through, 31));
    const u64 target = at.target - at.before;
    u64 before = through - sum + __shfl_sync(kAll, warps_through, max(warp - 1, 0)) * (warp > 0);
    for (int i = 0; i < kBinsEach; ++i) {
      if (before <= target && target - before < own[i]) {
        scratch.bin = thread * kBinsEach + i;
        scratch.before = before;
        scratch.inside = own[i];
      }
      before += own[i];
    }
    __syncthreads();
    at.rank += scratch.bin << shift;
    at.before += scratch.before;
    at.inside = scratch.inside;
    if (shift == 0) return at;
    high = min(high, at.rank + ((1u << shift) - 1));
  }
}

// The id at which the sum of what `weigh` gives, in the order of ids, passes what `target_of`
// makes of the whole sum.
template <typename Weigh, typename Target>
__device__ inline int find_id(Scratch& scratch, const float* row, int vocab, Weigh weigh,
                              Target target_of) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int from = 0, to = vocab;
  u64 target = 0;
  // Two buffers in turn: one is written again only after a barrier that follows its readers. What
  // came before has read the other one.
  for (int level = 1;; ++level) {
    const int piece = (to - from + kWarps - 1) / kWarps;
    const int first = min(to, from + warp * piece), last = min(to, first + piece);
    u64 sum = 0;
    sweep<2>(row, first, last, lane, 32, [&](int, float logit) { sum += weigh(logit); });
    u64* sums = scratch.sums[level & 1];
    sum = warp_through(sum);
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    const u64 own = sums[lane], through = warp_through(own);
    if (level == 1) target = target_of(__shfl_sync(kAll, through, 31));
    const int at = __ffs(__ballot_sync(kAll, through > target)) - 1;
    target -= __shfl_sync(kAll, through - own, at);
    from += at * piece;
    to = min(to, from + piece);
    if (piece == 1) return from;
  }
}

__device__ inline void quarter_round(unsigned& a, unsigned& b, unsigned& c, unsigned& d) {
  const auto rotated = [](unsigned x, int by) { return x << by | x >> (32 - by); };
  a += b, d = rotated(d ^ a, 16);
  c += d, b = rotated(b ^ c, 12);
  a += b, d = rotated(d ^ a, 8);
  c += d, b = rotated(b ^ c, 7);
}

// Words 2 * position and 2 * position + 1 of the stream of ChaCha with 12 rounds.
__device__ inline u64 random_word(const Params& params) {
  const u64 position = static_cast<u64>(params.position_high) << 32 | params.position_low;
  const u64 block = position >> 3;
  unsigned start[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
  for (int i = 0; i < 8; ++i) start[4 + i] = params.key[i];
  start[12] = static_cast<unsigned>(block);
  start[13] = static_cast<unsigned>(block >> 32);
  unsigned state[16];
  for (int i = 0; i < 16; ++i) state[i] = start[i];
#pragma unroll 1
  for (int round = 0; round < 12; round += 2) {
    for (int i = 0; i < 4; ++i) quarter_round(state[i], state[4 + i], state[8 + i], state[12 + i]);
    for (int i = 0; i < 4; ++i)
      quarter_round(state[i], state[4 + (i + 1) % 4], state[8 + (i + 2) % 4],
                    state[12 + (i + 3) % 4]);
  }
  u64 word = 0;
  for (int i = 0; i < 8; ++i)
    if (i == static_cast<int>(position & 7))
      word = static_cast<u64>(state[2 * i + 1] + start[2 * i + 1]) << 32 |
             (state[2 * i] + start[2 * i]);
  return word;
}

__device__ inline unsigned draw(Scratch& scratch, const float* row, int vocab, const Params& params,
                                unsigned best) {
  const Weights weigh = {logit_of(best), params.scale_high, params.scale_low};
  // floor(uniform * mass), with the 53 bits that the CPU's uniform number has.
  const u64 random = scratch.random >> 11 << 11;
  const auto share = [&](u64 mass) { return __umul64hi(random, mass); };
  const double top_p = __hiloint2double(params.top_p_high, params.top_p_low);
  const bool cut_k = params.top_k > 0 && params.top_k < vocab, cut_p = top_p < 1;
  if (!cut_k && !cut_p) return find_id(scratch, row, vocab, weigh, share);

  const auto one = [](float) { return u64{1}; };
  unsigned last = weigh.end();  // the last rank that is kept
  u64 cut = 0;                  // the weight of those of that rank that are not
  if (cut_k) {
    const auto kth = [&](u64 count) { return min(count, static_cast<u64>(params.top_k)) - 1; };
    const Reach at = reach(scratch, row, vocab, best, last, one, kth);
    last = at.rank;
    cut = (at.before + at.inside - at.target - 1) * weigh(logit_of(last));
  }
  u64 mass = 0;
  if (cut_p) {
    // The product in f64, as on the CPU: 0.9 of 3000 equals is 2700 of them.
    const auto reached = [&](u64 all) {
      const u64 kept = all - cut, wanted = ceil(top_p * static_cast<double>(kept));
      return max(min(wanted, kept), u64{1}) - 1;
    };
    const Reach at = reach(scratch, row, vocab, best, last, weigh, reached);
    last = at.rank;
    const u64 each = weigh(logit_of(last));
    mass = at.before + ((at.target - at.before) / each + 1) * each;
  }
  const auto drawn = [&](u64 all) { return share(cut_p ? mass : all - cut); };
  const Reach at = reach(scratch, row, vocab, best, last, weigh, drawn);
  const u64 nth = (at.target - at.before) / weigh(logit_of(at.rank));
  const auto equal = [&](float logit) { return u64{rank_of(logit) == at.rank}; };
  return find_id(scratch, row, vocab, equal, [&](u64) { return nth; });
}

extern "C" __global__ void __launch_bounds__(kThreads)
    sample(const float* logits, const Params* params, unsigned* out, int vocab) {
  __shared__ Scratch scratch;
  const Params& own = params[blockIdx.x];
  if (own.kind != kGreedy && own.kind != kDraw) return;
  const float* row = logits + static_cast<size_t>(blockIdx.x) * vocab;
  for (int i = 0; i < kBinsEach; ++i) {
    const int bin = threadIdx.x * kBinsEach + i;
    scratch.high[bin] = scratch.low[bin] = 0;
  }
  if (threadIdx.x == 0 && own.kind == kDraw) scratch.random = random_word(own);
  const u64 first = first_of_largest(scratch, row, vocab);
  const unsigned best = first >> 32;
  unsigned token = first;
  if (best < kRankOfInfinity)
    token = kNotANumber;
  else if (own.kind == kDraw && best > kRankOfInfinity && best < kRankOfMinusInfinity)
    token = draw(scratch, row, vocab, own, best);
  if (threadIdx.x == 0) out[blockIdx.x] = token;
}
SIMT_EXPORT(sample)
