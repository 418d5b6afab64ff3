#include "machine.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ventoux {

#if defined(__x86_64__)

namespace {

// Linux lets a process use tiles once it has asked to: they make the room that a signal handler needs larger. The
// answer holds for all threads. It refuses when a thread has a signal stack that is too small, or was built without.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

Kernels with(const Products& products) {
  Kernels kernels = kAvx512;
  kernels.name = products.name;
  kernels.linear = products.linear;
  kernels.moe = products.moe;
  kernels.attention = products.attention;
  return kernels;
}

}  // namespace

#endif

std::vector<Kernels> usable(bool emulated) {
  std::vector<Kernels> found;
  bool avx512 = false;
#if defined(__x86_64__)
  __builtin_cpu_init();
  avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  if (avx512) {
    if (__builtin_cpu_supports("avx512bf16")) {
      // Attention needs both. All processors with tiles have them; where a hypervisor hides one, vectors do it all.
      if (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles())
        found.push_back(with(kAmx));
      found.push_back(with(kAvx512Bf16));
    }
    if (__builtin_cpu_supports("avx512vnni")) found.push_back(kAvx512Vnni);
    found.push_back(kAvx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(kAvx2);
#endif
  found.push_back(kPortable);
#if defined(__x86_64__)
  if (emulated && avx512) {
    found.push_back(with(kAmxEmulated));
    found.push_back(with(kAvx512Bf16Emulated));
  }
#endif
  return found;
}

}  // namespace ventoux
