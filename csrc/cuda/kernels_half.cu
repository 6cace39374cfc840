// The kernels for storage in float16.
#include "cuda/backward.h"
#include "cuda/forward.h"

namespace lewel::cuda {
template void forward<Half>(const Forward&, Workspace&, const Device*);
template void backward<Half>(const Backward&, Workspace&, const Device*);
}  // namespace lewel::cuda
