// What the lanes of a warp do together, given the requests of all of them: by the documents on PTX, not by the kernels.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "machine.h"

namespace lewel::cuda::emulation {

constexpr int kLanes = 32;
using Lanes = const Request* [kLanes];

constexpr int kSide = 16;  // of the matrices

typedef float Row __attribute__((vector_size(8 * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(8 * sizeof(uint32_t))));
typedef uint16_t Numbers __attribute__((vector_size(8 * sizeof(uint16_t))));

// Eight numbers as floats.
inline void widen_row(float* to, const void* from, bool half) {
  Numbers numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  Words u = __builtin_convertvector(numbers, Words);
  if (half) {
    // Subnormals, which begin at 2^-14 here, are mended by a subtraction: no float on the way is subnormal.
    const Words sign = (u & 0x8000) << 16, magnitude = (u & 0x7fff) << 13;
    const Words small = reinterpret_cast<Words>(magnitude < (0x400u << 13));
    const Words large = reinterpret_cast<Words>(magnitude >= (0x7c00u << 13));
    const Words shifted = magnitude + (112u << 23) + (large & (112u << 23)) + (small & (1u << 23));
    Row row;
    std::memcpy(&row, &shifted, sizeof row);
    row -= 0x1p-14f;
    Words mended;
    std::memcpy(&mended, &row, sizeof mended);
    u = sign | (small & mended) | (~small & shifted);
  } else {
    u <<= 16;
  }
  std::memcpy(to, &u, sizeof u);
}

// d (16 x 8) += a (16 x 16) b (16 x 8), in the order of the columns of a; rows of b and d are `width` apart.
inline void multiply(float* d, const float (&a)[kSide][kSide], const float* b, int width) {
  Row rows[kSide];
  for (int k = 0; k < kSide; ++k) std::memcpy(&rows[k], b + k * width, sizeof(Row));
  for (int i = 0; i < kSide; ++i) {
    Row sum;
    std::memcpy(&sum, d + i * width, sizeof sum);
    for (int k = 0; k < kSide; ++k) sum += a[i][k] * rows[k];
    std::memcpy(d + i * width, &sum, sizeof sum);
  }
}

inline void shuffle(const Lanes& lanes) {
  const int bytes = lanes[0]->variant;
  char values[kLanes][8];
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(values[lane], lanes[lane]->left, bytes);
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& q = *lanes[lane];
    std::memcpy(q.result, values[lane ^ q.number], bytes);
  }
}

// ldmatrix.m8n8.x4.b16: row i of matrix j starts at the address of lane 8 j + i, and goes to four lanes, a word each.
inline void load_matrices(const Lanes& lanes) {
  const bool transposed = lanes[0]->variant != 0;
  for (int j = 0; j < 4; ++j) {
    uint16_t matrix[8][8];
    for (int i = 0; i < 8; ++i) std::memcpy(matrix[i], lanes[8 * j + i]->left, sizeof matrix[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const uint32_t lower = transposed ? matrix[column][row] : matrix[row][column];
      const uint32_t upper = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      static_cast<uint32_t*>(lanes[lane]->result)[j] = lower | upper << 16;
    }
  }
}

// mma.m16n8k16, whose words are pairs of neighbours in a row of a and in a column of b. PTX calls lane / 4 the group.
inline void multiply_fragments(const Lanes& lanes, bool half) {
  uint32_t left[kSide][8], right[8][8];  // right holds the columns of b
  float a[kSide][kSide], columns[8][kSide], b[kSide][8], d[kSide][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& q = *lanes[lane];
    const int group = lane / 4, member = lane % 4;
    uint32_t x[4], y[2];
    std::memcpy(x, q.left, sizeof x);
    std::memcpy(y, q.right, sizeof y);
    left[group][member] = x[0];
    left[group + 8][member] = x[1];
    left[group][member + 4] = x[2];
    left[group + 8][member + 4] = x[3];
    right[group][member] = y[0];
    right[group][member + 4] = y[1];
    std::memcpy(&d[group][2 * member], q.result, 2 * sizeof(float));
    std::memcpy(&d[group + 8][2 * member], static_cast<float*>(q.result) + 2, 2 * sizeof(float));
  }
  for (int i = 0; i < kSide; ++i)
    for (int word = 0; word < 8; word += 4) widen_row(&a[i][2 * word], &left[i][word], half);
  for (int j = 0; j < 8; ++j) {
    for (int word = 0; word < 8; word += 4) widen_row(&columns[j][2 * word], &right[j][word], half);
    for (int k = 0; k < kSide; ++k) b[k][j] = columns[j][k];
  }
  multiply(&d[0][0], a, &b[0][0], 8);
  for (int lane = 0; lane < kLanes; ++lane) {
    float* const sums = static_cast<float*>(lanes[lane]->result);
    std::memcpy(sums, &d[lane / 4][lane % 4 * 2], 2 * sizeof(float));
    std::memcpy(sums + 2, &d[lane / 4 + 8][lane % 4 * 2], 2 * sizeof(float));
  }
}

// WMMA. A lane holds eight numbers of an operand, strewn over the matrix, each with a tag of how it was loaded in the
// upper half of its word, so that what was not loaded, or loaded otherwise, shows.
constexpr uint32_t kTag = 0xa5c0;
constexpr uint32_t tag(bool right, bool columns) { return kTag | static_cast<uint32_t>(right) << 1 | columns; }

// Calls f(lane, word, i, j) for every number (i, j) of a matrix and the place where it is held.
template <class F>
inline void for_each_held(F&& f) {
  for (unsigned at = 0; at < kSide * kSide; ++at) {
    const unsigned number = (at * 167 + 59) % (kSide * kSide);
    f(at / 8, at % 8, number / kSide, number % kSide);
  }
}

inline void load_operand(const Lanes& lanes, bool right) {
  const Request& q = *lanes[0];
  const bool columns = q.variant != 0;
  uint16_t numbers[kSide][kSide];  // [j][i] if by columns
  for (int i = 0; i < kSide; ++i)
    std::memcpy(numbers[i], static_cast<const char*>(q.left) + int64_t{2} * i * q.number, sizeof numbers[i]);
  const uint32_t tagged = tag(right, columns) << 16;
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    static_cast<uint32_t*>(lanes[lane]->result)[word] = tagged | (columns ? numbers[j][i] : numbers[i][j]);
  });
}

inline void read_operand(float (&to)[kSide][kSide], const Lanes& lanes, bool right) {
  const uint32_t expected = tag(right, lanes[0]->variant >> right & 1);
  uint16_t numbers[kSide][kSide];
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    const Request& q = *lanes[lane];
    const uint32_t held = static_cast<const uint32_t*>(right ? q.right : q.left)[word];
    if (held >> 16 != expected)
      fail(std::string("multiplies a ") + (right ? "right" : "left") +
               " operand that was not loaded as such, in this order of storage",
           q.line);
    numbers[i][j] = static_cast<uint16_t>(held);
  });
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; j += 8) widen_row(&to[i][j], &numbers[i][j], true);
}

inline void multiply_sums(const Lanes& lanes) {
  float a[kSide][kSide], b[kSide][kSide], d[kSide][kSide];
  read_operand(a, lanes, false);
  read_operand(b, lanes, true);
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    d[i][j] = static_cast<const float*>(lanes[lane]->result)[word];
  });
  for (int j = 0; j < kSide; j += 8) multiply(&d[0][j], a, &b[0][j], kSide);
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    static_cast<float*>(lanes[lane]->result)[word] = d[i][j];
  });
}

inline void store_sum(const Lanes& lanes) {
  const Request& q = *lanes[0];
  float* const p = static_cast<float*>(q.result);
  for_each_held([&](unsigned lane, unsigned word, unsigned i, unsigned j) {
    p[int64_t{i} * q.number + j] = static_cast<const float*>(lanes[lane]->left)[word];
  });
}

// Does for every lane what all ask for.
inline void perform(const Lanes& lanes) {
  switch (lanes[0]->kind) {
    case Collective::warp_barrier: return;
    case Collective::shuffle: return shuffle(lanes);
    case Collective::load_matrices: return load_matrices(lanes);
    case Collective::multiply_half: return multiply_fragments(lanes, true);
    case Collective::multiply_bfloat16: return multiply_fragments(lanes, false);
    case Collective::load_left: return load_operand(lanes, false);
    case Collective::load_right: return load_operand(lanes, true);
    case Collective::multiply_sums: return multiply_sums(lanes);
    case Collective::store_sum: return store_sum(lanes);
  }
}

// Whether two lanes ask for the same.
inline bool agree(const Request& p, const Request& q) {
  if (p.kind != q.kind || p.variant != q.variant || p.line.number != q.line.number) return false;
  switch (p.kind) {
    case Collective::load_left:
    case Collective::load_right: return p.left == q.left && p.number == q.number;
    case Collective::store_sum: return p.result == q.result && p.number == q.number;
    default: return true;
  }
}

}  // namespace lewel::cuda::emulation
