/* int4 and int8 weights with AMX: the same integers and the same order of fp32 additions as
 * level_matmul_int.c, hence the same bits.
 *
 * Per block of 32 inputs: unpack the weights to signed bytes, one tile product (up to 16 rows x 16 outputs),
 * and y += float(product) * (weight scale * activation scale).
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

/* One statement for each of 16 rows with a literal index, so that the sums can live in registers: a loop is
 * unrolled too late for that. Comparisons with a constant `rows` vanish. */
#define EACH_ROW(S) \
    S(0) S(1) S(2) S(3) S(4) S(5) S(6) S(7) S(8) S(9) S(10) S(11) S(12) S(13) S(14) S(15)
#define ADD_SCALED(r)                                                                   \
    if (r < rows)                                                                       \
        sums[r] += __builtin_convertvector(load_i32(products + r * PANEL), v16f) * (weight_scale * scales[r]);

/* Three stages run on different blocks at a time: a tile load that follows the stores of its bytes waits for
 * them to reach the cache, and so does a register load after a tile store. */
#define UNPACK_LEAD 3  /* blocks between unpacking and the tile product */
#define PRODUCT_LEAD 1 /* blocks between the tile product and the scaling */

/* 2 KB + 2 KB: within one page no load is mistaken for one that hits an earlier store 4 KB away. */
typedef struct {
    int8_t bytes[4][BLOCK * PANEL];
    int32_t products[2][TILE * PANEL];
    v16f scales[8];
} stages;

INLINE void unpack_stage(stages *s, int64_t block, const int format, cursor *at) {
    unpack_signed(at->p, format, s->bytes[block % 4]);
    s->scales[block % 8] = load_f16(at->scales + at->half * PANEL);
    for (int64_t line = 0; line < at->block_bytes; line += 64)
        _mm_prefetch((const char *)at->p + 4096 + line, _MM_HINT_T0);
    advance(at);
}

INLINE void product_stage(stages *s, int64_t block, const int8_t *a) {
    FENCE();
    _tile_zero(0);
    _tile_loadd(2, a, BLOCK);
    _tile_loadd(4, s->bytes[block % 4], 64);
    _tile_dpbssd(0, 2, 4);
    _tile_stored(0, s->products[block % 2], 64);
    FENCE();
}

INLINE void panel_rows(const int format, const int64_t rows, const tc_weight *w, const uint8_t *panel,
                       const int8_t *a, const float *scales, int64_t height, float *y) {
    _Alignas(4096) stages s;
    v16f sums[TILE];
    int64_t blocks_per_group = w->group / BLOCK, block_bytes = format == TC_W_INT4 ? 256 : 512;
    cursor at = {panel, (const uint16_t *)(panel + 2 * blocks_per_group * block_bytes), 0, blocks_per_group,
                 blocks_per_group, block_bytes};
#define CLEAR(r) sums[r] = splat(0);
    EACH_ROW(CLEAR)
    for (int64_t step = 0; step < w->num_blocks + UNPACK_LEAD + PRODUCT_LEAD; step++) {
        int64_t product = step - UNPACK_LEAD, scaled = product - PRODUCT_LEAD;
        if (step < w->num_blocks) unpack_stage(&s, step, format, &at);
        if (product >= 0 && product < w->num_blocks) product_stage(&s, product, a + product * height * BLOCK);
        if (scaled < 0) continue;
        const int32_t *products = s.products[scaled % 2];
        v16f weight_scale = s.scales[scaled % 8];
        EACH_ROW(ADD_SCALED)
        scales += height;
    }
#define STORE(r) if (r < rows) store_f32(y + r * PANEL, sums[r]);
    EACH_ROW(STORE)
}

INLINE void any_height(const int format, const tc_weight *w, const uint8_t *panel, const int8_t *a,
                       const float *scales, int64_t height, float *y) {
    if (height == 16) panel_rows(format, 16, w, panel, a, scales, 16, y);
    else if (height == 8) panel_rows(format, 8, w, panel, a, scales, 8, y);
    else panel_rows(format, height, w, panel, a, scales, height, y);
}

/* To be called before panels of a tile with `height` rows; costs as much as several blocks. */
void tc_amx_int_begin(int64_t height) {
    tile_config config = {0};
    set_tile(&config, 0, height, 64);
    set_tile(&config, 2, height, BLOCK);
    set_tile(&config, 4, BLOCK / 4, 64);
    load_config(&config);
}

void tc_amx_int_end(void) { _tile_release(); }

/* y [rows of the tile][16] = activations x panel, transposed. */
void tc_amx_int_panel(const tc_weight *w, int64_t panel, const tc_acts *acts, int64_t tile, float *y) {
    int64_t height = acts->rows - tile * TILE < TILE ? acts->rows - tile * TILE : TILE;
    int64_t index = tile * TILE * acts->num_blocks;
    const int8_t *a = (const int8_t *)acts->values + index * BLOCK;
    const uint8_t *p = w->data + panel * w->panel_bytes;
    if (w->format == TC_W_INT4) any_height(TC_W_INT4, w, p, a, acts->scales + index, height, y);
    else any_height(TC_W_INT8, w, p, a, acts->scales + index, height, y);
}
