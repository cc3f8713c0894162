/* out[T, N] = in[T, K] . weight[N, K]^T. Included by kernels.c.
 *
 * With a scale for each group of inputs, the products of a group are summed first, in the lanes of a vector, and the
 * sum is scaled once. What a group adds to each weight, its zero and the 8 that int4 codes are too large by, is
 * multiplied with the sum of the group's inputs, which all rows share.
 * The scratch of a thread holds TILE_N rows of a weight as float32, then the sums of the groups of M_BLOCK tokens:
 * 5 k + 64 floats are enough.
 */

#ifdef __AVX512F__
#define LANES 16
#define TILE_M 8   /* tokens x rows of a register tile: 24 sums, 3 weights and 1 input of 32 vector registers */
typedef float vw __attribute__((vector_size(64)));
typedef float vwu __attribute__((vector_size(64), aligned(4)));
INLINE vw fma_wide(vw a, vw b, vw c) { return (vw)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
/* Eight sums at a time, each in the order of sum8(lanes 0-7 + lanes 8-15): halves, quarters, pairs, ones. */
INLINE void sum_lanes(const vw *sums, int count, float *out) {
    for (int s = 0; s < count; s += 8) {
        __m512 half[4], quarter[2];
        for (int i = 0; i < 4; i++) {
            __m512 a = (__m512)sums[s + 2 * i < count ? s + 2 * i : s], b = (__m512)sums[s + 2 * i + 1 < count ? s + 2 * i + 1 : s];
            half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        }
        for (int i = 0; i < 2; i++) {
            __m512 a = half[2 * i], b = half[2 * i + 1];
            quarter[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        }
        __m512d a = _mm512_castps_pd(quarter[0]), b = _mm512_castps_pd(quarter[1]);
        __m512 pair = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
        __m512 one = _mm512_add_ps(pair, _mm512_permute_ps(pair, 0xb1));
        one = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0), one);
        _mm256_storeu_ps(out + s, _mm512_castps512_ps256(one));
    }
}
INLINE vw wide(float x) { return (vw)_mm512_set1_ps(x); }
INLINE vw load_first(const float *p, int count) {
    return (vw)_mm512_maskz_loadu_ps(count < 16 ? (1u << count) - 1 : 0xffff, p);
}
INLINE vw load_weight(const char *row, int type, int k) {
    if (type == F32) return *(const vwu *)((const float *)row + k);
    if (type == FP8) {
        __m256i bytes = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(row + k)));
        return (vw)_mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(bytes, 7), _mm256_set1_epi16((short)0xbf80)));
    }
    if (type == INT8) return (vw)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + k))));
    __m256i h = _mm256_loadu_si256((const __m256i *)((const uint16_t *)row + k));
    if (type == BF16) return (vw)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
    return (vw)_mm512_cvtph_ps(h);
}
#else
#define LANES 8
#define TILE_M 4   /* 12 sums, 3 weights and 1 input of 16 vector registers */
typedef v8 vw;
typedef v8u vwu;
INLINE vw fma_wide(vw a, vw b, vw c) { return fma8(a, b, c); }
INLINE void sum_lanes(const vw *sums, int count, float *out) {
#pragma GCC unroll 16
    for (int s = 0; s < count; s++) out[s] = sum8(sums[s]);
}
INLINE vw wide(float x) { return splat(x); }
INLINE vw load_first(const float *p, int count) { /* the others are 0 */
#ifdef __AVX2__
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (v8)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
#else
    v8 x = splat(0);
    memcpy(&x, p, (count < 8 ? count : 8) * sizeof(float));
    return x;
#endif
}
INLINE vw load_weight(const char *row, int type, int k) {
    if (type == F32) return load((const float *)row + k);
    if (type == FP8) {
#if defined(__F16C__) && defined(__AVX2__)
        __m128i bytes = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(row + k)));
        return (v8)_mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(bytes, 7), _mm_set1_epi16((short)0xbf80)));
#else
        v8 x;
        for (int i = 0; i < 8; i++) x[i] = one_weight(row, FP8, k + i);
        return x;
#endif
    }
    if (type == INT8) {
#ifdef __AVX2__ /* gcc 12 makes scalar code of the conversion below */
        return (v8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + k))));
#else
        return __builtin_convertvector(*(const b8 *)(row + k), v8);
#endif
    }
    h8 h = *(const h8 *)((const uint16_t *)row + k);
    if (type == BF16) return (v8)(__builtin_convertvector(h, v8ui) << 16);
#if defined(__F16C__) && defined(__AVX2__)
    return (v8)_mm256_cvtph_ps((__m128i)h);
#else
    v8 x;
    for (int i = 0; i < 8; i++) x[i] = half_to_float(h[i]);
    return x;
#endif
}
#endif
#ifdef __AVX2__
#define KEEP(x) __asm__("" : "+v"(x)) /* in a register: gcc loads it anew for every use */
#else
#define KEEP(x) (void)(x)
#endif
#define TILE_N 3
#define GROUPED_M 4 /* tokens of a tile of groups, which holds two sums an output */
#define GEMV_N 8   /* rows at a time when there is one token: enough sums to hide the latency of FMA */
#define M_BLOCK 64 /* tokens that stay in the second-level cache while the weights pass by */

/* Some rows of a weight against some tokens. */
typedef struct {
    const float *x;           /* [m_count, K], ldx floats apart */
    const char *w;            /* [n_count, K], ldw bytes apart */
    float *out;               /* [m_count, n_count], ldo floats apart */
    const float *scale;       /* [n_count] or [n_count, groups], lds floats apart; or null */
    const float *zero, *bias; /* as scale, or null; [n_count] or null */
    const float *sums;        /* of the inputs of each group, [m_count, groups], ldsum floats apart; or null */
    int64_t ldx, ldw, ldo, lds, ldsum;
    float unit;               /* what 1 stands for in a row of weights */
    float offset;             /* what the numbers of the weight are too large by */
    int k, group, m_count, n_count; /* group: 0 is one scale for the row */
} part_t;

/* total[m * n_count + n] += the sums of the groups, each times what it adds to its weights. */
INLINE void add_offsets(const part_t *p, int m_count, int n_count, vw *total) {
    int groups = p->k / p->group;
    for (int g = 0; g < groups; g += LANES)
        for (int n = 0; n < n_count; n++) {
            int64_t at = n * p->lds + g;
            vw offset = wide(-p->offset) * load_first(p->scale + at, groups - g);
            if (p->zero) offset += load_first(p->zero + at, groups - g);
            for (int m = 0; m < m_count; m++)
                total[m * n_count + n] = fma_wide(offset, load_first(p->sums + m * p->ldsum + g, groups - g), total[m * n_count + n]);
        }
}

/* A sum becomes an output. */
INLINE void finish(const part_t *p, int grouped, int m, int n, float y) {
    if (!grouped) {
        if (p->sums) y -= p->offset * p->sums[m * p->ldsum];
        y *= p->unit;
        if (p->scale) y *= p->scale[n * p->lds];
    }
    if (p->bias) y += p->bias[n];
    p->out[m * p->ldo + n] = y;
}

/* One register tile. With `fetch`, the rows of the next tile come into the cache meanwhile: the hardware follows one
 * row well, but not the jump to the next. */
INLINE void tile(const part_t *p, int type, int fetch, int grouped, int m_count, int n_count) {
    const float *x = p->x;
    const char *w = p->w;
    int64_t ldx = p->ldx, ldw = p->ldw;
    int k = p->k, i = 0, group = 0;
    vw sum[TILE_M * TILE_N], total[TILE_M * TILE_N];
    for (int s = 0; s < m_count * n_count; s++) sum[s] = total[s] = (vw){0};
    do {
        int end = grouped ? i + p->group : k;
        for (; i + LANES <= end; i += LANES) {
            vw weight[GEMV_N];
            for (int n = 0; n < n_count; n++) {
                weight[n] = load_weight(w + n * ldw, type, i);
                if (fetch) __builtin_prefetch(w + (n + n_count) * ldw + row_bytes(type, i));
            }
            for (int m = 0; m < m_count; m++) {
                vw xi = *(const vwu *)(x + m * ldx + i);
                KEEP(xi);
                for (int n = 0; n < n_count; n++) sum[m * n_count + n] = fma_wide(xi, weight[n], sum[m * n_count + n]);
            }
        }
        if (grouped)
#pragma GCC unroll 24
            for (int s = 0; s < m_count * n_count; s++) {
                total[s] = fma_wide(wide(p->scale[s % n_count * p->lds + group]), sum[s], total[s]);
                sum[s] = (vw){0};
            }
        group++;
    } while (grouped && i < k);
    if (grouped && p->sums) add_offsets(p, m_count, n_count, total);
    float sums[TILE_M * TILE_N];
    sum_lanes(grouped ? total : sum, m_count * n_count, sums);
    for (int m = 0; m < m_count; m++)
        for (int n = 0; n < n_count; n++) {
            float y = sums[m * n_count + n];
            for (int t = i; t < k; t++) y = fma1(x[m * ldx + t], one_weight(w + n * ldw, type, t), y);
            finish(p, grouped, m, n, y);
        }
}

#define TILES_OF(M) case M: \
    if (grouped && M > GROUPED_M) return; \
    if (p->n_count == TILE_N) tile(p, type, fetch, grouped, M, TILE_N); else tile(p, type, fetch, grouped, M, 1); \
    return;

/* The tile of p's size: one or three rows against up to TILE_M tokens, or GEMV_N rows against one. */
INLINE void any_tile(const part_t *p, int type, int fetch, int grouped) {
    if (p->n_count == GEMV_N) { tile(p, type, fetch, grouped, 1, GEMV_N); return; }
    switch (p->m_count) {
        TILES_OF(1) TILES_OF(2) TILES_OF(3) TILES_OF(4)
#if TILE_M == 8
        TILES_OF(5) TILES_OF(6) TILES_OF(7) TILES_OF(8)
#endif
    }
}

#include "int4.h"

/* More types: float32 that is in the cache already, and weights with groups. */
enum { CACHED = FP8 + 1, INT8_GROUPED, INT4_GROUPED, CACHED_GROUPED };
static void tile_f32(const part_t *p) { any_tile(p, F32, 1, 0); }
static void tile_bf16(const part_t *p) { any_tile(p, BF16, 1, 0); }
static void tile_f16(const part_t *p) { any_tile(p, F16, 1, 0); }
static void tile_int8(const part_t *p) { any_tile(p, INT8, 1, 0); }
static void tile_int4(const part_t *p) { any_int4(p, 0); }
static void tile_fp8(const part_t *p) { any_tile(p, FP8, 1, 0); }
static void tile_cached(const part_t *p) { any_tile(p, F32, 0, 0); }
static void tile_int8_grouped(const part_t *p) { /* one token */
    if (p->n_count == GEMV_N) tile(p, INT8, 1, 1, 1, GEMV_N);
    else tile(p, INT8, 1, 1, 1, 1);
}
static void tile_int4_grouped(const part_t *p) { any_int4(p, 1); }
static void tile_cached_grouped(const part_t *p) { any_tile(p, F32, 0, 1); }
static void (*const tile_of[])(const part_t *) = {tile_f32, tile_bf16, tile_f16, tile_int8, tile_int4, tile_fp8,
                                                  tile_cached, tile_int8_grouped, tile_int4_grouped, tile_cached_grouped};

INLINE void expand_rows(const part_t *p, int type, float *out) {
    for (int n = 0; n < p->n_count; n++, out += p->k) {
        const char *row = p->w + n * p->ldw;
        int i = 0;
        for (; i + LANES <= p->k; i += LANES) {
            *(vwu *)(out + i) = load_weight(row, type, i);
            __builtin_prefetch(row + p->n_count * p->ldw + row_bytes(type, i));
        }
        for (; i < p->k; i++) out[i] = one_weight(row, type, i);
    }
}

static void expand(const part_t *p, int type, float *out) {
    switch (type) {
    case BF16: expand_rows(p, BF16, out); break;
    case F16: expand_rows(p, F16, out); break;
    case FP8: expand_rows(p, FP8, out); break;
    case INT4: case INT4_GROUPED: expand_int4(p, out); break;
    default: expand_rows(p, INT8, out);
    }
}

/* Whether the numbers of a type take so much unpacking that they become float32 for two tokens already. */
INLINE int packed(int type) { return type == INT4 || type == INT4_GROUPED || type == INT8_GROUPED; }

/* More tokens than one tile takes. From three tiles on, the weights become float32 once for all of them. */
static void many_tiles(part_t p, int type, float *expanded) {
    int at_once = p.group ? GROUPED_M : TILE_M, left = p.m_count, tiles = (left + at_once - 1) / at_once;
    if (type != F32 && (tiles > 2 || packed(type))) {
        expand(&p, type, expanded);
        p.w = (const char *)expanded;
        p.ldw = p.k * (int64_t)sizeof(float);
        type = p.group ? CACHED_GROUPED : CACHED;
    }
    for (; tiles > 0; tiles--) {
        p.m_count = (left + tiles - 1) / tiles;
        tile_of[type](&p);
        if (type == F32) type = CACHED;
        left -= p.m_count;
        p.x += p.m_count * p.ldx;
        p.out += p.m_count * p.ldo;
        if (p.sums) p.sums += p.m_count * p.ldsum;
    }
}

/* Sums of each group of inputs of some tokens, [tokens, ldsum]. */
static void sum_groups(const float *x, int64_t ldx, int tokens, int k, int group, float *sums, int64_t ldsum) {
    for (int m = 0; m < tokens; m++)
        for (int g = 0; g * group < k; g++) {
            const float *xm = x + m * ldx + g * group;
            vw sum = {0};
            float y[8];
            int i = 0;
            for (; i + LANES <= group; i += LANES) sum += *(const vwu *)(xm + i);
            sum_lanes(&sum, 1, y);
            for (; i < group; i++) y[0] += xm[i];
            sums[m * ldsum + g] = y[0];
        }
}

static void linear(const op_t *op, const batch_t *b, int tokens, int thread) {
    const float *x = b->buffer[op->in];
    float *out = b->buffer[op->out] + op->column, *expanded = b->scratch + thread * b->scratch_stride, *sums = expanded + 3 * op->k;
    int64_t ldx = b->width[op->in], ldo = b->width[op->out], ldw = row_bytes(op->wtype, op->k);
    int64_t from, to, lds = op->group ? op->k / op->group : 1;
    share(op->n, 24, thread, b->num_threads, &from, &to);
    int step = tokens == 1 ? GEMV_N : TILE_N, summed = op->wtype == INT4 || op->zero;
    int type = !op->group ? op->wtype : op->wtype == INT4 ? INT4_GROUPED : INT8_GROUPED;
    int at_once = packed(type) ? 1 : TILE_M, rest = packed(type) && tokens == 1 ? 1 : TILE_N;
    for (int m = 0; m < tokens; m += M_BLOCK) {
        int m_count = tokens - m < M_BLOCK ? tokens - m : M_BLOCK;
        if (summed) sum_groups(x + m * ldx, ldx, m_count, op->k, op->group ? op->group : op->k, sums, lds);
        for (int64_t n = from; n < to;) {
            int n_count = to - n >= step ? step : to - n >= rest ? rest : 1;
            part_t p = {
                .x = x + m * ldx, .w = (const char *)op->weight + n * ldw, .out = out + m * ldo + n,
                .scale = op->scale ? op->scale + n * lds : 0, .zero = op->zero ? op->zero + n * lds : 0,
                .bias = op->bias ? op->bias + n : 0, .sums = summed ? sums : 0,
                .ldx = ldx, .ldw = ldw, .ldo = ldo, .lds = lds, .ldsum = lds,
                .unit = op->wtype == FP8 ? FP8_UNIT : 1, .offset = op->wtype == INT4 ? 8 : 0,
                .k = op->k, .group = op->group, .m_count = m_count, .n_count = n_count,
            };
            if (m_count > at_once) many_tiles(p, type, expanded);
            else tile_of[type](&p);
            n += n_count;
        }
    }
}
