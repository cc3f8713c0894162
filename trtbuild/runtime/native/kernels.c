/* CPU kernels of trtbuild: runs a list of operations over one batch of tokens.
 *
 * All activations are float32; weights are float32, bfloat16, float16, or int8, int4 or fp8 (e4m3) with a scale per
 * output row, or, int8 and int4, with a scale and perhaps a zero for each group of inputs: w = q * scale + zero.
 * Every number that is summed is summed in an order that depends on the reduced dimension alone, never on the number
 * of tokens in the batch, the number of threads or the chunk of a prompt. So a request gets the same bits alone and
 * in company, and that is tested.
 *
 * T tokens, R rows that need logits, K inputs, N outputs, B tokens of a cache block.
 * Weights [N, K] row-major.  Keys of a block [kv_heads, head_size, B] (eight tokens are one vector of the score
 * loop), values [kv_heads, B, head_size] (eight channels are one vector of the output loop).
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint32_t v8ui __attribute__((vector_size(32)));
typedef int8_t b8 __attribute__((vector_size(8), aligned(1)));
typedef uint16_t h8 __attribute__((vector_size(16), aligned(2)));

#define INLINE static inline __attribute__((always_inline))

enum { F32, BF16, F16, INT8, INT4, FP8 };
enum { EMBED, NORM, LINEAR, ROPE_CACHE, ATTENTION, ACT_MUL, ADD, TAKE_ROWS };

typedef struct {
    int32_t kind, wtype;
    int32_t in, in2, out;   /* buffer numbers */
    int32_t n, k;           /* outputs, inputs */
    int32_t layer;          /* of this stage */
    int32_t row, column;    /* EMBED: first vocabulary row and hidden column that this rank holds;
                               LINEAR: first column of `out` */
    int32_t of_rows;        /* NORM, LINEAR: 1 works on the R rows that need logits, 0 on all tokens */
    int32_t act;            /* ACT, ACT_MUL: the activation; PREPARE, ROPE_CACHE: the rounding */
    int32_t window;         /* ATTENTION: tokens that are looked back to, the own one included; 0: all */
    int32_t table;          /* ROPE_CACHE: the rotary table */
    float eps, factor;      /* EMBED: scale; SOFT_CAP: the cap */
    int32_t group;          /* inputs that share a scale, a multiple of 32 that divides k; 0: one scale a row */
    const void *weight;     /* PREPARE: float32 [k] or null; ROPE_CACHE with act: float32 [1] */
    const float *scale;     /* int8, int4, fp8: [n], or [n, k / group] */
    const float *zero;      /* [n, k / group] or null */
    const float *bias;      /* [n] or null; PREPARE: the static scale, [1] */
} op_t;

typedef struct {
    float *buffer[16];
    int32_t width[16];      /* floats in a row of each buffer */
    int32_t num_tokens, num_rows;
    const int32_t *token_ids;    /* [T] */
    const int32_t *positions;    /* [T] */
    const int32_t *slots;        /* [T] row of block_tables */
    const int32_t *block_tables; /* [slots, max_blocks] */
    const int32_t *rows;         /* [R] tokens whose logits are wanted */
    int32_t max_blocks, block_tokens;
    int32_t num_heads, num_kv_heads, head_size, rotary_size;
    float score_scale, soft_cap;        /* of attention scores; 0: no cap */
    const float *cos_table, *sin_table; /* [tables, max_seq_len, rotary_size / 2] */
    int64_t table_stride;               /* in floats */
    const int32_t *lengths;             /* [slots] tokens of each sequence, if rope_switch */
    int32_t rope_switch;                /* longer sequences use the next rotary table; 0: never */
    const float *position_bias;         /* [num_heads, whole blocks] added to the score of a key there, or null */
    int64_t bias_stride;
    float *keys, *values;               /* [layers, blocks, kv_heads * head_size * B] */
    int64_t layer_stride, block_stride; /* in floats */
    float *scratch;                     /* per thread: the scores of MAX_GROUP heads, or what linear.h asks for */
    int64_t scratch_stride;
    int32_t num_threads;
    volatile int64_t *work;             /* grows with every operation that is begun, or null; others read it meanwhile */
} batch_t;

/* ---- vectors ---- */

INLINE v8 load(const float *p) { return *(const v8u *)p; }
INLINE void store(float *p, v8 x) { *(v8u *)p = x; }
INLINE v8 splat(float x) { return (v8){x, x, x, x, x, x, x, x}; }
INLINE float sum8(v8 x) { /* ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)) */
    typedef float v4 __attribute__((vector_size(16)));
    v4 y = (v4){x[0], x[1], x[2], x[3]} + (v4){x[4], x[5], x[6], x[7]};
    y += (v4){y[2], y[3], y[0], y[1]};
    return y[0] + y[1];
}
/* a * b + c in one rounding. Products and sums are never joined by the compiler (-ffp-contract=off), so that the same
 * number comes out of every specialization of a loop. */
#ifdef __FMA__
INLINE v8 fma8(v8 a, v8 b, v8 c) { return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
INLINE v8 fma8(v8 a, v8 b, v8 c) { return a * b + c; }
INLINE float fma1(float a, float b, float c) { return a * b + c; }
#endif
INLINE v8 max8(v8 a, v8 b) { v8i m = a > b; return (v8)((m & (v8i)a) | (~m & (v8i)b)); }

INLINE float half_to_float(uint16_t h) {
#if defined(__F16C__) && defined(__AVX2__)
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7fff;
    union { uint32_t u; float f; } v;
    if (mag < 0x400) { v.f = (float)mag * 0x1p-24f; v.u |= sign; return v.f; }
    v.u = sign | (mag >= 0x7c00 ? 0x7f800000u | (mag & 0x3ff) << 13 : (mag << 13) + 0x38000000u);
    return v.f;
#endif
}

/* A weight as it is multiplied: int8 without its scale, fp8 as 2^-8 of its value, which is what its bits mean as a
 * half (the same mantissa, an exponent 8 larger). */
#define FP8_UNIT 256.0f
INLINE float one_weight(const char *row, int type, int k) {
    if (type == F32) return ((const float *)row)[k];
    if (type == INT8) return (float)((const int8_t *)row)[k];
    if (type == FP8) { uint8_t b = (uint8_t)row[k]; return half_to_float((uint16_t)((b & 0x80) << 8 | (b & 0x7f) << 7)); }
    uint16_t h = ((const uint16_t *)row)[k];
    if (type == BF16) { union { uint32_t u; float f; } v = {(uint32_t)h << 16}; return v.f; }
    return half_to_float(h);
}

INLINE int64_t row_bytes(int type, int64_t k) {
    return type == F32 ? 4 * k : type == INT8 || type == FP8 ? k : type == INT4 ? k / 2 : 2 * k;
}

/* e^x to about 1e-7 relative: 2^n by the exponent bits, the rest by a polynomial (Cephes coefficients). */
INLINE v8 exp8(v8 x) {
    x = max8(x, splat(-87.0f));
    x = -max8(-x, splat(-88.0f)); /* above, the exponent would run into the sign */
    v8 z = x * splat(1.44269504088896341f);
    v8i n = __builtin_convertvector(z + (v8)(((v8i)z & (int32_t)0x80000000) | 0x3f000000), v8i);
    v8 nf = __builtin_convertvector(n, v8);
    v8 r = fma8(nf, splat(-0.693359375f), x);
    r = fma8(nf, splat(2.12194440e-4f), r);
    v8 p = splat(1.9875691500e-4f);
    p = fma8(p, r, splat(1.3981999507e-3f));
    p = fma8(p, r, splat(8.3334519073e-3f));
    p = fma8(p, r, splat(4.1665795894e-2f));
    p = fma8(p, r, splat(1.6666665459e-1f));
    p = fma8(p, r, splat(5.0000001201e-1f));
    p = fma8(p * r, r, r) + splat(1.0f);
    return p * (v8)((n + 127) << 23);
}

/* Work is cut into equal runs, one a thread. */
INLINE void share(int64_t total, int64_t unit, int thread, int threads, int64_t *from, int64_t *to) {
    int64_t units = (total + unit - 1) / unit;
    *from = units * thread / threads * unit;
    *to = units * (thread + 1) / threads * unit;
    if (*to > total) *to = total;
    if (*from > total) *from = total;
}

#include "ops.h"
#include "grid.h"

#include "linear.h"
#include "attention.h"

/* ---- the rest of a decoder layer ---- */

static void embed(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to, width = b->width[op->out], ldw = row_bytes(op->wtype, op->k);
    share(b->num_tokens, 1, thread, b->num_threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        float *out = b->buffer[op->out] + t * width;
        int64_t id = (int64_t)b->token_ids[t] - op->row;
        memset(out, 0, width * sizeof(float)); /* what other ranks hold comes with the all-reduce */
        if (id < 0 || id >= op->n) continue;
        const char *row = (const char *)op->weight + id * ldw;
        for (int i = 0; i < op->k; i++) out[op->column + i] = one_weight(row, op->wtype, i) * op->factor;
    }
}

/* RMSNorm of rows of `in`; with in2 >= 0 first in += in2, the residual sum that the next layers read. */
static void norm(const op_t *op, const batch_t *b, int tokens, int thread) {
    int64_t from, to, width = op->k;
    const float *w = op->weight;
    share(tokens, 1, thread, b->num_threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        float *x = b->buffer[op->in] + t * width, *out = b->buffer[op->out] + t * width;
        const float *add = op->in2 >= 0 ? b->buffer[op->in2] + t * width : 0;
        v8 squares = splat(0);
        int i = 0;
        for (; i + 8 <= width; i += 8) {
            v8 xi = load(x + i);
            if (add) { xi += load(add + i); store(x + i, xi); }
            squares = fma8(xi, xi, squares);
        }
        float total = sum8(squares);
        for (; i < width; i++) {
            if (add) x[i] += add[i];
            total = fma1(x[i], x[i], total);
        }
        float inverse = 1.0f / sqrtf(total / (float)width + op->eps);
        for (i = 0; i + 8 <= width; i += 8) store(out + i, load(x + i) * splat(inverse) * load(w + i));
        for (; i < width; i++) out[i] = x[i] * inverse * w[i];
    }
}

static void rotate(float *head, const float *cosine, const float *sine, int half) {
    for (int i = 0; i < half; i++) {
        float a = head[i], c = head[i + half];
        head[i] = a * cosine[i] - c * sine[i];
        head[i + half] = c * cosine[i] + a * sine[i];
    }
}

/* Rotates q and k of qkv in place (rope_gpt_neox: the two halves of a head) and stores k and v into the cache; with
 * `act` k and v are first rounded, in place, to the grid of scale weight[0]. */
static void rope_cache(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to, width = b->width[op->in];
    int hd = b->head_size, half = b->rotary_size / 2, bt = b->block_tokens;
    share(b->num_tokens, 1, thread, b->num_threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        float *q = b->buffer[op->in] + t * width, *k = q + (int64_t)b->num_heads * hd, *v = k + (int64_t)b->num_kv_heads * hd;
        int64_t position = b->positions[t];
        int64_t table = op->table + (b->rope_switch && b->lengths[b->slots[t]] > b->rope_switch);
        int64_t angle = table * b->table_stride + position * half;
        const float *cosine = b->cos_table + angle, *sine = b->sin_table + angle;
        for (int h = 0; h < b->num_heads + b->num_kv_heads; h++) rotate(q + h * hd, cosine, sine, half);
        if (op->act) round_run(k, 0, k, 2 * b->num_kv_heads * hd, *(const float *)op->weight, op->act);
        int64_t block = b->block_tables[(int64_t)b->slots[t] * b->max_blocks + position / bt];
        int64_t base = op->layer * b->layer_stride + block * b->block_stride, at = position % bt;
        for (int h = 0; h < b->num_kv_heads; h++) {
            float *keys = b->keys + base + (int64_t)h * hd * bt + at, *values = b->values + base + ((int64_t)h * bt + at) * hd;
            for (int i = 0; i < hd; i++) keys[i * bt] = k[h * hd + i];
            memcpy(values, v + h * hd, hd * sizeof(float));
        }
    }
}

static void add(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to;
    share((int64_t)b->num_tokens * op->k, 8, thread, b->num_threads, &from, &to);
    float *x = b->buffer[op->in];
    const float *y = b->buffer[op->in2];
    for (int64_t i = from; i < to; i++) x[i] += y[i];
}

static void take_rows(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to, width = op->k;
    share(b->num_rows, 1, thread, b->num_threads, &from, &to);
    for (int64_t r = from; r < to; r++)
        memcpy(b->buffer[op->out] + r * width, b->buffer[op->in] + b->rows[r] * width, width * sizeof(float));
}

#include "moe.h"

static void run_one(const op_t *op, const batch_t *b, int thread) {
    int tokens = op->of_rows ? b->num_rows : b->num_tokens;
    switch (op->kind) {
    case EMBED: embed(op, b, thread); break;
    case NORM: norm(op, b, tokens, thread); break;
    case LINEAR: linear(op, b, tokens, thread); break;
    case ROPE_CACHE: rope_cache(op, b, thread); break;
    case ATTENTION: attention(op, b, thread); break;
    case ACT_MUL: case ACT: act(op, b, thread); break;
    case ADD: add(op, b, thread); break;
    case TAKE_ROWS: take_rows(op, b, thread); break;
    case PREPARE: if (op->in2 >= 0) prepare_pairs(op, b, thread); else prepare(op, b, tokens, thread); break;
    case LAYER_NORM: layer_norm(op, b, tokens, thread); break;
    case HEAD_NORM: head_norm(op, b, thread); break;
    case SOFT_CAP: soft_cap(op, b, tokens, thread); break;
    case ADD_POSITION: add_position(op, b, thread); break;
    default: run_experts(op, b, thread);
    }
}

/* The entry: `count` operations in order, all threads on each. */
void trtbuild_run(const op_t *ops, int32_t count, const batch_t *asked) {
#pragma omp parallel num_threads(asked->num_threads)
    {
        batch_t own = *asked, *b = &own;
        /* OpenMP may give fewer threads than asked for; work is shared among those that are there. */
#ifdef _OPENMP
        int thread = omp_get_thread_num();
        own.num_threads = omp_get_num_threads();
#else
        int thread = 0;
        own.num_threads = 1;
#endif
        for (int32_t i = 0; i < count; i++) {
            if (!thread && b->work) ++*b->work;
            run_one(ops + i, b, thread);
#pragma omp barrier
        }
    }
}

/* Sizes of the structures, so that the caller can prove that both sides agree. */
int64_t trtbuild_op_size(void) { return sizeof(op_t); }
int64_t trtbuild_batch_size(void) { return sizeof(batch_t); }
