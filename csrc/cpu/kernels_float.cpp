// A file per accumulator, so that they compile side by side.
#include "backward.h"

namespace lewel::cpu {

template int64_t forward_workspace<float>(const Forward&);
template void forward<float>(const Forward&);
template int64_t backward_workspace<float>(const Backward&);
template void backward<float>(const Backward&);

}  // namespace lewel::cpu
