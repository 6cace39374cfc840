// The kernels for storage in bfloat16.
#include "cuda/backward.h"
#include "cuda/forward.h"

namespace lewel::cuda {
template void forward<BFloat16>(const Forward&, Workspace&, const Device*);
template void backward<BFloat16>(const Backward&, Workspace&, const Device*);
}  // namespace lewel::cuda
