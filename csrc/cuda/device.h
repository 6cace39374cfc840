// What the kernels take from the machine: threads, barriers, copies, matrix products, and the 16-bit numbers.
//
// The only file with instructions in it, and it includes nothing of CUDA, so that NVRTC compiles the kernels as they
// are. The kernels see these functions alone; with start.h and current_device.h, it is all that knows of hardware.
#pragma once

#include "cuda/numbers.h"

#define LEWEL_DEVICE __device__ __forceinline__
#define LEWEL_HOST_DEVICE __host__ __device__ __forceinline__
// A kernel of blocks of `threads`, of which a multiprocessor should hold `blocks`: that bounds the registers of a
// thread.
#define LEWEL_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)

namespace lewel::cuda {

// Which instructions there are: those of sm_70, or those of sm_80 too.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr int kArch = 80;
#else
constexpr int kArch = 70;
#endif

// ---- numbers of storage types T, computed with as accumulators A

template <class A, class T>
LEWEL_DEVICE A widen(T x) {
  return static_cast<A>(x);
}
template <>
LEWEL_DEVICE float widen<float, Half>(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
template <>
LEWEL_DEVICE float widen<float, BFloat16>(BFloat16 x) {
  return __uint_as_float(static_cast<uint32>(x.bits) << 16);
}

// Rounded to the nearest, halves to even; NaN stays NaN.
template <class T, class A>
LEWEL_DEVICE T rounded(A x) {
  return static_cast<T>(x);
}
template <>
LEWEL_DEVICE Half rounded<Half, float>(float x) {
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
LEWEL_DEVICE BFloat16 rounded<BFloat16, float>(float x) {
  BFloat16 y{0x7fff};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const uint32 u = __float_as_uint(x);  // no instruction before sm_80, where only results are stored so
  if (x == x) y.bits = static_cast<unsigned short>((u + 0x7fff + (u >> 16 & 1)) >> 16);
#endif
  return y;
}

LEWEL_DEVICE float infinity() { return __int_as_float(0x7f800000); }
LEWEL_DEVICE float power_of_two(float x) { return ::exp2f(x); }
LEWEL_DEVICE double power_of_two(double x) { return ::exp2(x); }
LEWEL_DEVICE float square_root(float x) { return ::sqrtf(x); }
LEWEL_DEVICE double square_root(double x) { return ::sqrt(x); }

// x, of which the compiler knows nothing: what is computed from it is not kept in registers from one step of a loop to
// the next.
LEWEL_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- threads

LEWEL_DEVICE int thread() { return threadIdx.x; }
LEWEL_DEVICE int lane() { return threadIdx.x % 32; }
LEWEL_DEVICE int warp() { return threadIdx.x / 32; }
LEWEL_DEVICE int block_x() { return blockIdx.x; }
LEWEL_DEVICE int block_y() { return blockIdx.y; }
LEWEL_DEVICE int block_z() { return blockIdx.z; }

LEWEL_DEVICE void block_barrier() { __syncthreads(); }
LEWEL_DEVICE void warp_barrier() { __syncwarp(); }

// The value of lane ^ mask, for float and double.
template <class A>
LEWEL_DEVICE A shuffle_xor(A x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

// The memory that the threads of a block share, as many bytes as the launch asked for, aligned to 128 bytes.
LEWEL_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// ---- copies of 16 bytes

struct alignas(16) Vector {
  uint32 words[4];
};

// Starts to copy 16 bytes to shared memory, of which those after the first `bytes` are zero and not read. kArch 80.
LEWEL_DEVICE void copy_async(void* shared, const void* global, int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const uint32 to = static_cast<uint32>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(global)),
               "r"(bytes)
               : "memory");
#endif
}

// Ends a group of copies of this thread.
LEWEL_DEVICE void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups of this thread but the last PENDING have arrived. Other threads see them after a barrier.
template <int PENDING>
LEWEL_DEVICE void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- matrix products of 16-bit numbers, by all lanes of a warp together

// Four 8 x 8 matrices from shared memory: row i of matrix j lies at the address that lane 8 j + i gives, and lane t
// gets numbers 2 (t % 4) and 2 (t % 4) + 1 of row t / 4 of matrix j in words[j]; or, transposed, those numbers of
// column t / 4. kArch 80.
LEWEL_DEVICE void load_matrices(uint32 (&words)[4], const void* row, bool transposed) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const uint32 from = static_cast<uint32>(__cvta_generic_to_shared(row));
  if (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
  }
#endif
}

// d (16 x 8) += a (16 x 16) b (16 x 8). With q = lane / 4 and t = lane % 4, and each word two numbers, the lower first:
// a holds (q, 2t), (q + 8, 2t), (q, 2t + 8), (q + 8, 2t + 8) and their right neighbours; b holds (2t, q), (2t + 8, q)
// and their lower neighbours; d holds (q, 2t), (q, 2t + 1), (q + 8, 2t), (q + 8, 2t + 1). kArch 80.
LEWEL_DEVICE void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], Half) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
LEWEL_DEVICE void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], BFloat16) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same on sm_70, as WMMA: 16 x 16 x 16 numbers from and to shared memory, and which lane holds which is nobody's
// business. `columns`: number (i, j) lies at p[i + j * ld], else at p[i * ld + j]; ld is a multiple of 8 (of 4 for d),
// and p is aligned to 32 bytes.
struct Operand {
  uint32 words[8];
};
struct Sum {
  float values[8];
};

#define LEWEL_WMMA_LOAD(which, order)                                                                      \
  asm volatile("wmma.load." which ".sync.aligned.m16n16k16.shared." order                                  \
               ".f16 {%0, %1, %2, %3, %4, %5, %6, %7}, "                                                   \
               "[%8], %9;"                                                                                 \
               : "=r"(x.words[0]), "=r"(x.words[1]), "=r"(x.words[2]), "=r"(x.words[3]), "=r"(x.words[4]), \
                 "=r"(x.words[5]), "=r"(x.words[6]), "=r"(x.words[7])                                      \
               : "r"(from), "r"(ld)                                                                        \
               : "memory")

template <bool COLUMNS>
LEWEL_DEVICE void load_left(Operand& x, const Half* p, int ld) {
  const uint32 from = static_cast<uint32>(__cvta_generic_to_shared(p));
  if constexpr (COLUMNS)
    LEWEL_WMMA_LOAD("a", "col");
  else
    LEWEL_WMMA_LOAD("a", "row");
}

template <bool COLUMNS>
LEWEL_DEVICE void load_right(Operand& x, const Half* p, int ld) {
  const uint32 from = static_cast<uint32>(__cvta_generic_to_shared(p));
  if constexpr (COLUMNS)
    LEWEL_WMMA_LOAD("b", "col");
  else
    LEWEL_WMMA_LOAD("b", "row");
}
#undef LEWEL_WMMA_LOAD

// d += a b, of operands that were loaded with these orders.
#define LEWEL_WMMA(orders)                                                                                    \
  asm("wmma.mma.sync.aligned." orders                                                                         \
      ".m16n16k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, "                                                 \
      "{%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23}, "                    \
      "{%0, %1, %2, %3, %4, %5, %6, %7};"                                                                     \
      : "+f"(d.values[0]), "+f"(d.values[1]), "+f"(d.values[2]), "+f"(d.values[3]), "+f"(d.values[4]),        \
        "+f"(d.values[5]), "+f"(d.values[6]), "+f"(d.values[7])                                               \
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(a.words[4]), "r"(a.words[5]), \
        "r"(a.words[6]), "r"(a.words[7]), "r"(b.words[0]), "r"(b.words[1]), "r"(b.words[2]), "r"(b.words[3]), \
        "r"(b.words[4]), "r"(b.words[5]), "r"(b.words[6]), "r"(b.words[7]))

template <bool LEFT_COLUMNS, bool RIGHT_COLUMNS>
LEWEL_DEVICE void multiply_add(Sum& d, const Operand& a, const Operand& b) {
  if constexpr (LEFT_COLUMNS && RIGHT_COLUMNS)
    LEWEL_WMMA("col.col");
  else if constexpr (LEFT_COLUMNS)
    LEWEL_WMMA("col.row");
  else if constexpr (RIGHT_COLUMNS)
    LEWEL_WMMA("row.col");
  else
    LEWEL_WMMA("row.row");
}
#undef LEWEL_WMMA

// Number (i, j) of d to p[i * ld + j].
LEWEL_DEVICE void store_sum(float* p, const Sum& d, int ld) {
  const uint32 to = static_cast<uint32>(__cvta_generic_to_shared(p));
  asm volatile(
      "wmma.store.d.sync.aligned.m16n16k16.shared.row.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"r"(to),
      "f"(d.values[0]), "f"(d.values[1]), "f"(d.values[2]), "f"(d.values[3]), "f"(d.values[4]), "f"(d.values[5]),
      "f"(d.values[6]), "f"(d.values[7]), "r"(ld)
      : "memory");
}

}  // namespace lewel::cuda
