// A file per accumulator, so that they compile side by side.
#include "backward.h"

namespace lewel::cpu {

template int64_t forward_workspace<double>(const Forward&);
template void forward<double>(const Forward&);
template int64_t backward_workspace<double>(const Backward&);
template void backward<double>(const Backward&);

}  // namespace lewel::cpu
