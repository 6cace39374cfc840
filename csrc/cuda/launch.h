// Launching a kernel, or only saying so, for a person to read.
#pragma once

#include <string>

#include "cuda/call.h"
#include "cuda/device.h"
#include "cuda/start.h"

namespace lewel::cuda {

// "project_kernel<Half, 128, false, true>", as compilers spell the parameter of this template.
template <auto KERNEL>
std::string name_of() {
  std::string name = __PRETTY_FUNCTION__;
  const std::string before = "KERNEL = ", space = "lewel::cuda::";
  name = name.substr(name.find(before) + before.size());
  int open = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    open += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (open < 0 || (open == 0 && (name[i] == ';' || name[i] == ']'))) name.resize(i);
  }
  for (size_t at; (at = name.find(space)) != std::string::npos;) name.erase(at, space.size());
  return name.substr(name.find_first_not_of("&("));
}

inline std::string described(const std::string& name, Grid grid, int threads, int shared_bytes) {
  const auto number = [](int x) { return std::to_string(x); };
  return name + ": " + number(grid.x) + " x " + number(grid.y) + " x " + number(grid.z) + " blocks of " +
         number(threads) + " threads, " + number(shared_bytes) + " bytes of shared memory\n";
}

template <auto KERNEL, class... Arguments>
void launch(const Device& device, Grid grid, int threads, int shared_bytes, const Arguments&... arguments) {
  if (device.description) {
    *device.description += described(name_of<KERNEL>(), grid, threads, shared_bytes);
    return;
  }
  start<KERNEL>(device.stream, grid, threads, shared_bytes, arguments...);
}

}  // namespace lewel::cuda
