// The kernels as registration.cpp sees them, for accumulators A = float (storage fp32, bf16, fp16) and double (fp64).
#pragma once

#include "../params.h"

namespace lewel::cpu {

// E1-E5. The workspace holds as many accumulators as forward_workspace says.
template <class A>
int64_t forward_workspace(const Forward& q);
template <class A>
void forward(const Forward& q);

// E6-E10, likewise.
template <class A>
int64_t backward_workspace(const Backward& q);
template <class A>
void backward(const Backward& q);

}  // namespace lewel::cpu
