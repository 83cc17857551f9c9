// The only file that asks the CPU anything.
#include "dispatch.h"

#include <stdexcept>

#if defined(FEWBIT_X86)
#include <cpuid.h>
#elif defined(FEWBIT_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fewbit {

#define FEWBIT_KERNEL(name, when) extern const Kernels name;
#include "kernels.inc"
#undef FEWBIT_KERNEL

namespace {

struct Cpu {
  bool avx512vnni = false, avxvnni = false, avx2 = false, neondot = false;
  Cpu() {
#if defined(FEWBIT_X86)
    __builtin_cpu_init();
    avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    unsigned a = 0, b = 0, c = 0, d = 0;
    avx2 = avx2 && __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);  // F16C, which every CPU with AVX2 has
    avx512vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    a = b = c = d = 0;  // GCC 12 has no name for AVX-VNNI: leaf 7, subleaf 1, EAX bit 4
    avxvnni = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#elif defined(FEWBIT_ARM64) && defined(__linux__)
    neondot = getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(FEWBIT_ARM64)
    neondot = true;  // every 64-bit Apple CPU
#endif
  }
};

}  // namespace

std::vector<const Kernels*> available() {
  const Cpu cpu;
  (void)cpu;
  std::vector<const Kernels*> found;
#define FEWBIT_KERNEL(name, when) \
  if (when) found.push_back(&name);
#include "kernels.inc"
#undef FEWBIT_KERNEL
  return found;
}

std::vector<std::string> built() {
  return {
#define FEWBIT_KERNEL(name, when) #name,
#include "kernels.inc"
#undef FEWBIT_KERNEL
  };
}

const Kernels& choose(const std::string& name) {
  std::string names;
  for (const Kernels* k : available()) {
    if (name.empty() || name == k->name) return *k;
    names += std::string(names.empty() ? "" : ", ") + k->name;
  }
  throw std::runtime_error("instruction set " + name + " is not available here; this CPU runs " + names);
}

}  // namespace fewbit
