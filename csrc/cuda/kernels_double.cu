// The kernels for storage in float64.
#include "cuda/backward.h"
#include "cuda/forward.h"

namespace lewel::cuda {
template void forward<double>(const Forward&, Workspace&, const Device*);
template void backward<double>(const Backward&, Workspace&, const Device*);
}  // namespace lewel::cuda
