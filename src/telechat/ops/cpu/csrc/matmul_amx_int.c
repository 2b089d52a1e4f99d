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

/* Blocks go in pairs, whose tile products do not wait for one another, and three stages run on different pairs: a
 * tile load that follows the stores of its bytes waits for them to reach the cache, and so does a register load
 * after a tile store. */
#define UNPACK_LEAD 2  /* pairs between unpacking and the tile products */
#define PRODUCT_LEAD 1 /* pairs between the tile products and the scaling */
#define AHEAD 2048     /* bytes between what is unpacked and what is fetched from memory */

typedef struct {
    int8_t bytes[4][2][BLOCK * PANEL];
    int32_t products[2][2][TILE * PANEL];
    v16f scales[4][2];
} stages;

/* Where a panel is read: pairs of blocks, and the scales at the end of each superblock. */
typedef struct {
    const uint8_t *superblock;
    int64_t pair, blocks_per_group, block_bytes; /* the pair within the superblock, which has blocks_per_group */
} cursor;

INLINE void unpack_stage(stages *s, int64_t pair, const int format, cursor *at) {
    const uint8_t *p = at->superblock + 2 * at->pair * at->block_bytes;
    const uint8_t *scales = at->superblock + 2 * at->blocks_per_group * at->block_bytes;
    for (int b = 0; b < 2; b++) {
        int64_t half = 2 * at->pair + b >= at->blocks_per_group;
        unpack_signed(p + b * at->block_bytes, format, s->bytes[pair % 4][b]);
        s->scales[pair % 4][b] = load_f16((const uint16_t *)scales + half * PANEL);
    }
    for (int64_t line = 0; line < 2 * at->block_bytes + 64; line += 64)
        _mm_prefetch((const char *)p + AHEAD + line, _MM_HINT_T0);
    if (++at->pair < at->blocks_per_group) return;
    at->pair = 0;
    at->superblock = scales + 2 * PANEL * 2;
}

#define MULTIPLY(first, second)                                      \
    _tile_zero(first);                                               \
    _tile_zero(second);                                              \
    _tile_loadd(6, a, BLOCK);                                        \
    _tile_loadd(4, s->bytes[pair % 4][0], 64);                       \
    _tile_dpbssd(first, 6, 4);                                       \
    _tile_loadd(7, a + block_bytes, BLOCK);                          \
    _tile_loadd(5, s->bytes[pair % 4][1], 64);                       \
    _tile_dpbssd(second, 7, 5);                                      \
    _tile_stored(first, s->products[pair % 2][0], 64);               \
    _tile_stored(second, s->products[pair % 2][1], 64)

INLINE void product_stage(stages *s, int64_t pair, const int8_t *a, int64_t block_bytes) {
    FENCE();
    if (pair % 2) {
        MULTIPLY(2, 3);
    } else {
        MULTIPLY(0, 1);
    }
    FENCE();
}

INLINE void panel_rows(const int format, const int64_t rows, const tc_weight *w, const uint8_t *panel,
                       const int8_t *a, const float *scales, int64_t height, float *y) {
    _Alignas(4096) stages s;
    v16f sums[TILE];
    cursor at = {panel, 0, w->group / BLOCK, format == TC_W_INT4 ? 256 : 512};
    int64_t num_pairs = w->num_blocks / 2;
#define CLEAR(r) sums[r] = splat(0);
    EACH_ROW(CLEAR)
    for (int64_t step = 0; step < num_pairs + UNPACK_LEAD + PRODUCT_LEAD; step++) {
        int64_t product = step - UNPACK_LEAD, scaled = product - PRODUCT_LEAD;
        if (step < num_pairs) unpack_stage(&s, step, format, &at);
        if (product >= 0 && product < num_pairs)
            product_stage(&s, product, a + product * 2 * height * BLOCK, height * BLOCK);
        if (scaled < 0) continue;
        for (int b = 0; b < 2; b++, scales += height) {
            const int32_t *products = s.products[scaled % 2][b];
            v16f weight_scale = s.scales[scaled % 4][b];
            EACH_ROW(ADD_SCALED)
        }
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
    for (int i = 0; i < 4; i++) set_tile(&config, i, height, 64);
    for (int i = 4; i < 6; i++) set_tile(&config, i, BLOCK / 4, 64);
    for (int i = 6; i < 8; i++) set_tile(&config, i, height, BLOCK);
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
