// Results on their way from the bands of a product to global memory.
#pragma once

#include "cuda/tile.h"

namespace lewel::cuda {

// A matrix in global memory that is written, rows x columns.
template <class Row, class Column>
struct Destination {
  Mixed mixed;
  Row row;
  Column column;
  int rows, columns;
  bool wide;       // of T, and 16 bytes may be written at a time along the columns
  bool rows_fast;  // neighbouring rows lie together
  bool add;        // to what is there
};
template <class Row, class Column>
Destination(Mixed, Row, Column, int, int, bool, bool, bool) -> Destination<Row, Column>;

// Writes a band of 16 rows; its first number is (row, column) of the destination.
template <class T, int COLUMNS, class D, class A>
LEWEL_DEVICE void write_band(const D& to, const A* band, int pitch, int row, int column) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  if (to.wide) {
    constexpr int kEach = 16 * COLUMNS / kVector / 32, kTogether = kEach < 4 ? kEach : 4;
    static_assert(kEach % kTogether == 0 && 16 * COLUMNS % (32 * kVector) == 0);
#pragma unroll
    for (int from = 0; from < kEach; from += kTogether) {
      alignas(16) T numbers[kTogether][kVector];
      const auto place = [&](int n, auto use) {
        const int v = lane() + 32 * (from + n), i = v / (COLUMNS / kVector), j = v % (COLUMNS / kVector) * kVector;
        if (row + i >= to.rows || column + j >= to.columns) return;
        use(static_cast<T*>(to.mixed.data) + to.row(row + i) + to.column(column + j), i, j,
            column + j + kVector <= to.columns);
      };
#pragma unroll
      for (int n = 0; n < kTogether; ++n)  // before any is stored, lest each load waits for the store before it
        place(n, [&](const T* at, int, int, bool whole) {
          if (to.add && whole) *reinterpret_cast<Vector*>(numbers[n]) = *reinterpret_cast<const Vector*>(at);
        });
#pragma unroll
      for (int n = 0; n < kTogether; ++n)
        place(n, [&](T* at, int i, int j, bool whole) {
#pragma unroll
          for (int e = 0; e < kVector; ++e) {
            A x = band[i * pitch + j + e];
            if (to.add && whole) x += widen<A>(numbers[n][e]);
            numbers[n][e] = rounded<T>(x);
            if (!whole && column + j + e < to.columns) at[e] = to.add ? rounded<T>(x + widen<A>(at[e])) : numbers[n][e];
          }
          if (whole) *reinterpret_cast<Vector*>(at) = *reinterpret_cast<const Vector*>(numbers[n]);
        });
    }
  } else {
    for (int e = lane(); e < 16 * COLUMNS; e += 32) {  // neighbours are written by neighbouring lanes
      const int i = to.rows_fast ? e % 16 : e / COLUMNS, j = to.rows_fast ? e / 16 : e % COLUMNS;
      if (row + i >= to.rows || column + j >= to.columns) continue;
      const int64 at = to.row(row + i) + to.column(column + j);
      A x = band[i * pitch + j];
      if (to.add) x += to.mixed.template get<A>(at);
      to.mixed.set(at, x);
    }
  }
}

}  // namespace lewel::cuda
