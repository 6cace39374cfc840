// Checks of a program of the tests, each a function by a name: `program NAME` runs one, `program` lists them.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

struct Check {
  const char* name;
  void (*run)();
};

inline std::vector<Check>& checks() {
  static std::vector<Check> all;
  return all;
}

struct Listed {
  Listed(const char* name, void (*run)()) { checks().push_back({name, run}); }
};

// Begins the definition of a check.
#define CHECKED(name)              \
  void name();                     \
  const Listed name##_listed(#name, name); \
  void name()

[[noreturn]] inline void failed(int line, const std::string& said) {
  std::printf("line %d: %s\n", line, said.c_str());
  std::exit(1);
}

#define CHECK(condition, said) \
  do {                         \
    if (!(condition)) failed(__LINE__, said); \
  } while (false)

int main(int count, char** arguments) {
  for (const Check& check : checks()) {
    if (count < 2) {
      std::printf("%s\n", check.name);
    } else if (arguments[1] == std::string(check.name)) {
      check.run();
      std::printf("%s: ok\n", check.name);
      return 0;
    }
  }
  return count < 2 ? 0 : 2;
}
