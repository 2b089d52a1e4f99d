/* Put before every C++ file of llama.cpp: GCC 12's _tile_loadconfig declares 8 of the 64 bytes it reads, so the
   configuration is optimised away and the AMX code crashes. A memory clobber in front keeps it. */
#if defined(__AMX_TILE__) && !defined(TELECHAT_BENCH_TILE_LOADCONFIG)
#define TELECHAT_BENCH_TILE_LOADCONFIG
#include <immintrin.h>
static inline void bench_tile_loadconfig(const void *config) { __asm__ volatile("" ::: "memory"); _tile_loadconfig(config); }
#define _tile_loadconfig(config) bench_tile_loadconfig(config)
#endif
