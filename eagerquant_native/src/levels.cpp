// What this machine's CPU can do. Compiled once, for any CPU.
#include "eagerquant.h"

// Raised whenever a kernel's arguments change: a library built from other sources is not used.
EQ_EXPORT int32_t eq_interface() { return EQ_INTERFACE; }

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

// Tiles are off in every process until it asks the kernel for them (arch_prctl ARCH_REQ_XCOMP_PERM, XTILEDATA).
static bool may_use_tiles() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

static bool has_amx_int8() {
  unsigned a = 7, b, c = 0, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (d >> 24 & 1) && (d >> 25 & 1);  // AMX-TILE, AMX-INT8
}
#endif

// Bits, from the lowest: avx2, avx512, vnni, amx. Each asks for all below it.
EQ_EXPORT int32_t eq_cpu() {
  int32_t found = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return found;
  found |= 1;
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
    return found;
  found |= 2;
  if (!__builtin_cpu_supports("avx512vnni")) return found;
  found |= 4;
  if (has_amx_int8() && may_use_tiles()) found |= 8;
#endif
  return found;
}
