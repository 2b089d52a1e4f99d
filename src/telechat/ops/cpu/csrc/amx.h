/* What both AMX files need: loading a tile configuration, and fences.
 *
 * GCC 12 declares only 8 of the 64 bytes that `_tile_loadconfig` reads and no memory at all for tile loads, so
 * the compiler may drop or move the stores before them. An empty asm that clobbers memory stops that.
 */
#ifndef AMX_H
#define AMX_H

#include "lanes.h"

#define FENCE() __asm__ volatile("" ::: "memory")

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
} tile_config;

INLINE void set_tile(tile_config *config, int tile, int64_t rows, int bytes_per_row) {
    config->palette = 1;
    config->rows[tile] = (uint8_t)rows;
    config->bytes_per_row[tile] = (uint16_t)bytes_per_row;
}

INLINE void load_config(const tile_config *config) {
    FENCE();
    _tile_loadconfig(config);
}

#endif
