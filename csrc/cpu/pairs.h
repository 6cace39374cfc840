// Products of bf16 by the dot products of pairs that some processors have, twice as fast as widening to fp32.
// The product of two bf16 is exact in fp32 and sums are fp32, as everywhere; denormal operands count as 0.
#pragma once

#include "tile.h"

namespace lewel::cpu {

template <class A>
constexpr bool kPairs = kHasPairs && std::is_same_v<A, float>;
// Whether products of storage of this type, of this depth, go by pairs.
inline bool paired(DType t, int64_t depth) { return kHasPairs && t == DType::bf16 && depth % 2 == 0; }

// fp32 to the nearest bf16, still as fp32; a NaN stays one without its low half.
LEWEL_INLINE Vec<float> rounded_to_bf16(Vec<float> v) {
  Words u;
  std::memcpy(&u, &v, sizeof u);
  u = (v != v) ? u | 0x00400000 : (u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000;
  std::memcpy(&v, &u, sizeof u);
  return v;
}

// dst[j] = (even[j], odd[j]) for j < count, a multiple of the vector; odd null stands for zeros. Without Round the
// values must be bf16 already.
template <bool Round>
LEWEL_INLINE void pair_rows(Pair* dst, const float* even, const float* odd, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes<float>) {
    Vec<float> low = load(even + j), high = odd ? load(odd + j) : Vec<float>{};
    if (Round) low = rounded_to_bf16(low), high = rounded_to_bf16(high);
    Words a, b;
    std::memcpy(&a, &low, sizeof a);
    std::memcpy(&b, &high, sizeof b);
    const Words pairs = (a >> 16) | (b & 0xffff0000);
    Vec<Pair> v;
    std::memcpy(&v, &pairs, sizeof v);
    store(dst + j, v);
  }
}

// Rows 2i and 2i+1 of src [rows, kPanel] as row i of dst [(rows + 1) / 2, kPanel].
template <bool Round>
void pair_panel(Pair* dst, const float* src, int64_t rows, int64_t width) {
  constexpr int64_t n = kPanel<float>;
  for (int64_t i = 0; i < rows; i += 2)
    pair_rows<Round>(dst + i / 2 * n, src + i * n, i + 1 < rows ? src + (i + 1) * n : nullptr, width);
}

// dst[j] = (even[j], odd[j]) for j < count.
inline void pair_rows(Pair* dst, const bf16* even, const bf16* odd, int64_t count) {
  constexpr int n = kLanes<Pair>;
  const auto pair = [&](int64_t j) {
    Halves a, b;
    std::memcpy(&a, even + j, sizeof a);
    std::memcpy(&b, odd + j, sizeof b);
    const Words pairs = __builtin_convertvector(a, Words) | __builtin_convertvector(b, Words) << 16;
    std::memcpy(dst + j, &pairs, sizeof pairs);
  };
  int64_t j = 0;
  for (; j + n <= count; j += n) pair(j);
  if (j < count && count >= n)
    pair(count - n);
  else
    for (; j < count; ++j) dst[j] = static_cast<Pair>(even[j].bits | uint32_t{odd[j].bits} << 16);
}

// Whether rows of bf16 can be read as rows of pairs, and the matrix of these pairs: 32 bits each, as if of fp32.
inline bool adjacent_pairs(const Matrix& m) {
  return m.dtype == DType::bf16 && m.column == 1 && m.row % 2 == 0 &&
         reinterpret_cast<uintptr_t>(m.data) % sizeof(Pair) == 0;
}
inline Matrix as_pairs(const Matrix& m) { return {m.data, DType::f32, m.row / 2, 1}; }

// rows x depth bf16 as a left side of depth / 2 pairs: in place where pairs are adjacent, else in scratch (rows * depth).
inline Left<Pair> left_pairs(const Matrix& src, int64_t rows, int64_t depth, float* scratch) {
  if (adjacent_pairs(src)) return {src.as<Pair>(), src.row / 2, 1};
  Pair* pairs = reinterpret_cast<Pair*>(scratch);  // written behind what is read
  if (src.row == 1) {
    for (int64_t k = 0; k < depth; k += 2)
      pair_rows(pairs + k / 2 * rows, src.at(0, k).as<bf16>(), src.at(0, k + 1).as<bf16>(), rows);
    return {pairs, 1, rows};
  }
  read_block(scratch, depth, src, rows, depth, 0);
  write_run(reinterpret_cast<bf16*>(pairs), scratch, rows * depth);
  return {pairs, depth / 2, 1};
}

}  // namespace lewel::cpu
