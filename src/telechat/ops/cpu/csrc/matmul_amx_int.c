/* int4 and int8 weights with AMX: the same integers and the same order of fp32 additions as
 * level_matmul_int.c, hence the same bits.
 *
 * Per block of 32 inputs: unpack the weights to signed bytes, one tile product (up to 16 rows x 16 outputs),
 * and y += float(product) * (weight scale * activation scale). The product of one block runs while the sums
 * of the one before are scaled.
 */
#define _GNU_SOURCE
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include "amx.h"

/* Ask the system for permission to use tile data, once per process; 0 where it is refused. */
int tc_amx_enable(void) {
#if defined(__linux__)
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return 0;
#endif
}

/* Walks over the blocks of a panel. */
typedef struct {
    const uint8_t *p;
    const uint16_t *scales; /* of the present superblock */
    int64_t half, left, blocks_per_group, block_bytes;
} cursor;

INLINE void advance(cursor *c) {
    c->p += c->block_bytes;
    if (--c->left) return;
    c->left = c->blocks_per_group;
    c->half ^= 1;
    if (c->half) return;
    c->p += 2 * PANEL * 2;
    c->scales = (const uint16_t *)(c->p + 2 * c->blocks_per_group * c->block_bytes);
}

/* 8 quads as signed bytes, the B operand of a tile product. */
INLINE void unpack_signed(const uint8_t *p, const int format, int8_t *out) {
    if (format == TC_W_INT8) {
        const __m512i offset = _mm512_set1_epi8((char)0x80);
        for (int i = 0; i < 8; i++)
            _mm512_store_si512(out + i * 64, _mm512_xor_si512(_mm512_loadu_si512(p + i * 64), offset));
        return;
    }
    const __m512i low = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
    for (int i = 0; i < 4; i++) {
        __m512i both = _mm512_loadu_si512(p + i * 64);
        __m512i first = _mm512_and_si512(both, low);
        __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        _mm512_store_si512(out + i * 64, _mm512_sub_epi8(first, eight));
        _mm512_store_si512(out + (i + 4) * 64, _mm512_sub_epi8(second, eight));
    }
}

INLINE void add_scaled(v16f *sums, const int64_t rows, const int32_t *products, v16f weight_scale,
                       const float *scales) {
    for (int64_t r = 0; r < rows; r++) {
        v16f exact = __builtin_convertvector(load_i32(products + r * PANEL), v16f);
        sums[r] += exact * (weight_scale * scales[r]);
    }
}

/* One block: its tile product goes to `products[parity]`, then the block before is scaled. */
/* (Tile numbers are part of the instruction, hence literals.) */
#define STEP(parity, C, A, B)                                                              \
    do {                                                                          \
        unpack_signed(at.p, format, bytes[parity]);                               \
        for (int64_t line = 0; line < at.block_bytes; line += 64)                 \
            _mm_prefetch((const char *)at.p + 4096 + line, _MM_HINT_T0);          \
        FENCE();                                                                  \
        _tile_zero(C);                                                            \
        _tile_loadd(A, a, BLOCK);                                                 \
        _tile_loadd(B, bytes[parity], 64);                                        \
        _tile_dpbssd(C, A, B);                                                    \
        _tile_stored(C, products[parity], 64);                                    \
        FENCE();                                                                  \
        if (previous) add_scaled(sums, rows, products[1 - parity], previous_scale, previous); \
        previous = scales;                                                        \
        previous_scale = load_f16(at.scales + at.half * PANEL);                   \
        a += height * BLOCK;                                                      \
        scales += height;                                                         \
        advance(&at);                                                             \
    } while (0)

INLINE void panel_rows(const int format, const int64_t rows, const tc_weight *w, const uint8_t *panel,
                       const int8_t *a, const float *scales, int64_t height, float *y) {
    _Alignas(64) int8_t bytes[2][BLOCK * PANEL];
    _Alignas(64) int32_t products[2][TILE * PANEL];
    v16f sums[TILE];
    const float *previous = NULL;
    v16f previous_scale = splat(0);
    int64_t blocks_per_group = w->group / BLOCK, block_bytes = format == TC_W_INT4 ? 256 : 512;
    cursor at = {panel, (const uint16_t *)(panel + 2 * blocks_per_group * block_bytes), 0, blocks_per_group,
                 blocks_per_group, block_bytes};
    for (int64_t r = 0; r < rows; r++) sums[r] = splat(0);
    for (int64_t block = 0; block < w->num_blocks; block += 2) { /* a superblock has an even number */
        STEP(0, 0, 2, 4);
        STEP(1, 1, 3, 5);
    }
    add_scaled(sums, rows, products[1], previous_scale, previous);
    for (int64_t r = 0; r < rows; r++) store_f32(y + r * PANEL, sums[r]);
}

INLINE void any_height(const int format, const tc_weight *w, const uint8_t *panel, const int8_t *a,
                       const float *scales, int64_t height, float *y) {
    if (height == 16) panel_rows(format, 16, w, panel, a, scales, 16, y);
    else if (height == 8) panel_rows(format, 8, w, panel, a, scales, 8, y);
    else panel_rows(format, height, w, panel, a, scales, height, y);
}

/* y [rows of the tile][16] = activations x panel, transposed. */
void tc_amx_int_panel(const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile, float *y) {
    int64_t height = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE;
    int64_t index = tile * TILE * acts->num_blocks;
    tile_config config = {0};
    for (int i = 0; i < 2; i++) {
        set_tile(&config, i, height, 64);
        set_tile(&config, 2 + i, height, BLOCK);
        set_tile(&config, 4 + i, BLOCK / 4, 64);
    }
    load_config(&config);
    const int8_t *a = (const int8_t *)acts->values + index * BLOCK;
    const uint8_t *p = w->data + panel * w->panel_bytes;
    if (w->format == TC_W_INT4) any_height(TC_W_INT4, w, p, a, acts->scales + index, height, y);
    else any_height(TC_W_INT8, w, p, a, acts->scales + index, height, y);
    _tile_release();
}
