// The kernels for storage in float32.
#include "cuda/backward.h"
#include "cuda/forward.h"

namespace lewel::cuda {
template void forward<float>(const Forward&, Workspace&, const Device*);
template void backward<float>(const Backward&, Workspace&, const Device*);
}  // namespace lewel::cuda
