// Copies between strided storage and packed blocks of accumulators; the only code that knows layouts and storage types.
#pragma once

#include <algorithm>

#include "storage.h"

namespace lewel::cpu {

// A strided matrix in storage: element (i, j) lies at data[i * row + j * column].
struct Matrix {
  char* data;
  DType dtype;
  int64_t row, column;

  Matrix at(int64_t i, int64_t j) const { return {data + (i * row + j * column) * size_of(dtype), dtype, row, column}; }
  Matrix transposed() const { return {data, dtype, column, row}; }
  template <class A>
  A* as() const { return reinterpret_cast<A*>(data); }
};

// A strided (N, channels, positions) tensor in storage.
struct Tensor3 {
  char* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride[3] = {0, 0, 0};

  explicit operator bool() const { return data != nullptr; }
  // Image n as a matrix [positions, channels].
  Matrix by_position(int64_t n) const { return {data + n * stride[0] * size_of(dtype), dtype, stride[2], stride[1]}; }
  // Row n of an (N, rows, columns) tensor as a matrix [rows, columns].
  Matrix by_row(int64_t n) const { return {data + n * stride[0] * size_of(dtype), dtype, stride[1], stride[2]}; }
};

template <class A, class T>
void read_run(A* dst, const T* src, int64_t count) {
  int64_t j = 0;
  for (; j + kLanes<A> <= count; j += kLanes<A>) store(dst + j, load_as<A>(src + j));
  for (; j < count; ++j) dst[j] = static_cast<A>(widen(src[j]));
}

template <class A, class T>
void write_run(T* dst, const A* src, int64_t count) {
  int64_t j = 0;
  for (; j + kLanes<A> <= count; j += kLanes<A>) store_as<A>(dst + j, load(src + j));
  for (; j < count; ++j) narrow(src[j], dst[j]);
}

// dst[i * dst_row + j] = src(i, j) for i < rows, j < columns, and 0 for columns <= j < width.
template <class A>
void read_block(A* dst, int64_t dst_row, const Matrix& src, int64_t rows, int64_t columns, int64_t width) {
  constexpr int n = kLanes<A>;
  with_storage(src.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* s = src.template as<T>();
    if (src.column == 1) {
      for (int64_t i = 0; i < rows; ++i) read_run(dst + i * dst_row, s + i * src.row, columns);
    } else if (src.row == 1) {
      const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
      for (int64_t j = 0; j < whole_columns; j += n)
        for (int64_t i = 0; i < whole_rows; i += n) {
          Vec<A> block[n];  // [column, row] until transposed
          for (int k = 0; k < n; ++k) block[k] = load_as<A>(s + i + (j + k) * src.column);
          transpose<A>(block);
          for (int k = 0; k < n; ++k) store(dst + (i + k) * dst_row + j, block[k]);
        }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
          dst[i * dst_row + j] = static_cast<A>(widen(s[i + j * src.column]));
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
          dst[i * dst_row + j] = static_cast<A>(widen(s[i * src.row + j * src.column]));
    }
  });
  if (columns < width)
    for (int64_t i = 0; i < rows; ++i) std::fill(dst + i * dst_row + columns, dst + i * dst_row + width, A(0));
}

// Asks for the lines of a block that is read soon, into the second cache: the first is full of what is read now.
inline void prefetch_block(const Matrix& src, int64_t rows, int64_t columns) {
  const bool by_rows = src.column == 1;
  const int64_t runs = by_rows ? rows : columns, bytes = (by_rows ? columns : rows) * size_of(src.dtype);
  const int64_t step = (by_rows ? src.row : src.column) * size_of(src.dtype);
  asm volatile("");  // GCC takes a function of nothing but prefetches for one without effects and drops its calls
  for (int64_t i = 0; i < runs; ++i)
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(src.data + i * step + byte, 0, 2);
}

// dst(i, j) = src[i * src_row + j] for i < rows, j < columns.
template <class A>
void write_block(const Matrix& dst, const A* src, int64_t src_row, int64_t rows, int64_t columns) {
  constexpr int n = kLanes<A>;
  with_storage(dst.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* d = dst.template as<T>();
    if (dst.column == 1) {
      for (int64_t i = 0; i < rows; ++i) write_run(d + i * dst.row, src + i * src_row, columns);
    } else if (dst.row == 1) {
      const int64_t whole_rows = rows / n * n, whole_columns = columns / n * n;
      for (int64_t j = 0; j < whole_columns; j += n)
        for (int64_t i = 0; i < whole_rows; i += n) {
          Vec<A> block[n];  // [row, column] until transposed
          for (int k = 0; k < n; ++k) block[k] = load(src + (i + k) * src_row + j);
          transpose<A>(block);
          for (int k = 0; k < n; ++k) store_as<A>(d + i + (j + k) * dst.column, block[k]);
        }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
          narrow(src[i * src_row + j], d[i + j * dst.column]);
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) narrow(src[i * src_row + j], d[i * dst.row + j * dst.column]);
    }
  });
}

// The left side of a product, read element by element: element (i, k) at data[i * row + k * depth].
template <class A>
struct Left {
  const A* data;
  int64_t row, depth;
};

// rows x depth of src as a left side: in place where storage is the accumulator type, else converted into scratch
// (rows * depth elements) in the order of storage.
template <class A>
Left<A> left_side(const Matrix& src, int64_t rows, int64_t depth, A* scratch) {
  if (src.dtype == kDType<A>) return {src.template as<A>(), src.row, src.column};
  if (src.row == 1) {
    if (src.column == rows)
      read_block(scratch, rows * depth, Matrix{src.data, src.dtype, 0, 1}, 1, rows * depth, 0);
    else
      read_block(scratch, rows, src.transposed(), depth, rows, 0);
    return {scratch, 1, rows};
  }
  read_block(scratch, depth, src, rows, depth, 0);
  return {scratch, depth, 1};
}

// The right side of a product, read by whole vectors: row k at data + k * depth.
template <class A>
struct Right {
  const A* data;
  int64_t depth;
};

// depth x columns of src as a right side: in place where rows are whole vectors of accumulators, else packed into
// scratch (depth * kPanel elements) with zeros beyond the last column.
template <class A>
Right<A> right_side(const Matrix& src, int64_t depth, int64_t columns, A* scratch) {
  if (src.dtype == kDType<A> && src.column == 1 && columns % kLanes<A> == 0) return {src.template as<A>(), src.row};
  read_block(scratch, kPanel<A>, src, depth, columns, padded<A>(columns));
  return {scratch, kPanel<A>};
}

// Writes whole cache lines past the caches if the block consists of them; says whether it did.
// block is scratch of rows * columns. The end of the task orders the writes.
template <class A>
bool stream_block(const Matrix& dst, const A* src, int64_t src_row, int64_t rows, int64_t columns, A* block) {
  const int64_t size = size_of(dst.dtype);
  const bool by_rows = dst.column == 1;
  if ((!by_rows && dst.row != 1) || size > static_cast<int64_t>(sizeof(A))) return false;
  if (reinterpret_cast<uintptr_t>(dst.data) % 64) return false;
  // Runs of contiguous bytes in the destination.
  int64_t runs = by_rows ? rows : columns, length = (by_rows ? columns : rows) * size;
  const int64_t step = (by_rows ? dst.row : dst.column) * size;
  if (!by_rows && step == length) length *= runs, runs = 1;
  if (length % 64 || (runs > 1 && step % 64)) return false;
  const char* from = reinterpret_cast<const char*>(src);
  int64_t from_step = src_row * size;
  if (!by_rows || dst.dtype != kDType<A>) {  // to be transposed or converted first
    write_block(Matrix{reinterpret_cast<char*>(block), dst.dtype, by_rows ? columns : 1, by_rows ? 1 : rows}, src,
                src_row, rows, columns);
    from = reinterpret_cast<const char*>(block);
    from_step = length;
  }
  for (int64_t i = 0; i < runs; ++i, from += from_step)
    for (int64_t byte = 0; byte < length; byte += kVectorBytes)
      stream(reinterpret_cast<A*>(dst.data + i * step + byte), load(reinterpret_cast<const A*>(from + byte)));
  return true;
}

// Where a product is accumulated: the destination itself if it can hold whole vectors of accumulators, else a scratch
// block (2 * rows * kPanel elements) that finish() converts and lays out.
template <class A>
struct Target {
  Matrix out;
  A* data;
  int64_t row;
  bool large;

  Target(const Matrix& destination, int64_t columns, bool past_caches, A* scratch)
      : out(destination), data(scratch), row(kPanel<A>), large(past_caches) {
    if (!large && out.dtype == kDType<A> && out.column == 1 && columns % kLanes<A> == 0) {
      data = out.template as<A>();
      row = out.row;
    }
  }
  void finish(int64_t rows, int64_t columns) const {
    if (data == out.template as<A>()) return;
    if (large && stream_block(out, data, row, rows, columns, data + rows * kPanel<A>)) return;
    write_block(out, data, row, rows, columns);
  }
};

}  // namespace lewel::cpu
