/* Softmax attention of packed texts on CPUs with AVX-512, one text and head at a time, on the calling thread.
 *
 * For each block of 8 queries: scores against all keys that they see in float32, a softmax of two passes that stays in the first-level
 * cache, and the weighted sum of the values. bfloat16 inputs are multiplied in pairs (AVX512_BF16) and summed in float32;
 * the softmax's weights are rounded to bfloat16 before the second product, and summed as rounded. No value is ever written
 * to memory as a whole matrix, no text sees another, and the order of all sums is fixed.
 *
 * Optional: where this was not compiled (no compiler, no x86-64), attention.py runs torch's own operations instead.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAVE_KERNEL 1
#include <float.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define F32 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define INLINE static inline __attribute__((always_inline))
#define QUERIES 8           /* in a block */
#define LANES 16            /* float32 in a vector */
#define LOWEST (-FLT_MAX / 4) /* of keys that are not there: far below any score, and no NaN comes of it */

/* Where one tensor lies: (tokens, heads, width), the last dimension contiguous; steps count elements. */
typedef struct { const void *data; Py_ssize_t token, head; } Tensor;

typedef struct {
    Tensor query, key, value;
    void *out; /* (tokens, heads, width), contiguous */
    const int32_t *edges; /* texts + 1: where each text begins, from 0 */
    Py_ssize_t texts, heads, group, width; /* group: heads that share a key head */
    Py_ssize_t window; /* a token sees those closer than this; 0: all */
    int causal;
    float scale;
} Job;

/* The keys [low, high) that each query of a block sees, and their union, beginning with a whole vector. */
typedef struct { Py_ssize_t low[QUERIES], high[QUERIES], first, last; } Seen;

INLINE Seen seen_by(const Job *job, Py_ssize_t block, Py_ssize_t length) {
    Seen seen = {.first = length, .last = 0};
    for (int n = 0; n < QUERIES; n++) { /* past the last query the last one again, its result thrown away */
        const Py_ssize_t t = block + n < length ? block + n : length - 1, window = job->window ? job->window : length;
        seen.low[n] = t + 1 > window ? t + 1 - window : 0;
        seen.high[n] = job->causal ? t + 1 : t + window < length ? t + window : length;
        if (seen.low[n] < seen.first) seen.first = seen.low[n];
        if (seen.high[n] > seen.last) seen.last = seen.high[n];
    }
    seen.first = seen.first / LANES * LANES;
    return seen;
}

INLINE Py_ssize_t rounded(Py_ssize_t count) { return (count + LANES - 1) / LANES * LANES; }

/* 2^x for x <= 0; relative error 1e-7 (a polynomial of degree 5, fitted at the Chebyshev points of [-1/2, 1/2]). */
INLINE F32 __m512 exp2_of(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole);
    __m512 sum = _mm512_set1_ps(0.0013400432653725147f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.009676037356257439f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.05550327152013779f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.2402210682630539f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.6931471824645996f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0000001192092896f));
    return _mm512_scalef_ps(sum, whole);
}

/* The vector of scores from key `first` on, keys outside of [low, high) at LOWEST. */
INLINE F32 __m512 only_seen(__m512 scores, Py_ssize_t first, Py_ssize_t low, Py_ssize_t high) {
    if (low <= first && first + LANES <= high) return scores;
    const __m512i key = _mm512_add_epi32(_mm512_set1_epi32((int)first),
                                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __mmask16 there = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32((int)low)) &
                            _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32((int)high));
    return _mm512_mask_mov_ps(_mm512_set1_ps(LOWEST), there, scores);
}

/* -- float32: keys in panels of 16 (keys / 16, width, 16), values (keys, width) */

INLINE F32 void f32_scores(const float *query[QUERIES], const float *keys, Py_ssize_t row, const Seen *seen, int vectors,
                           Py_ssize_t first, Py_ssize_t width, float *scores, __m512 highest[QUERIES]) {
    __m512 sum[QUERIES][2];
    for (int q = 0; q < QUERIES; q++)
        for (int n = 0; n < vectors; n++) sum[q][n] = _mm512_setzero_ps();
    for (Py_ssize_t d = 0; d < width; d++) {
        __m512 key[2];
        for (int n = 0; n < vectors; n++) key[n] = _mm512_loadu_ps(keys + (first + n * LANES) * width + d * LANES);
        for (int q = 0; q < QUERIES; q++) {
            __m512 one = _mm512_set1_ps(query[q][d]);
            for (int n = 0; n < vectors; n++) sum[q][n] = _mm512_fmadd_ps(one, key[n], sum[q][n]);
        }
    }
    for (int q = 0; q < QUERIES; q++)
        for (int n = 0; n < vectors; n++) {
            __m512 found = only_seen(sum[q][n], first + n * LANES, seen->low[q], seen->high[q]);
            highest[q] = _mm512_max_ps(highest[q], found);
            _mm512_storeu_ps(scores + q * row + first + n * LANES, found);
        }
}

INLINE F32 void f32_mix(const float *weights, const float *values, Py_ssize_t row, const Seen *seen, int queries, int width,
                        const float *inverse, float *out[]) {
    __m512 sum[QUERIES][8];
    for (int q = 0; q < queries; q++)
        for (int n = 0; n < width / LANES; n++) sum[q][n] = _mm512_setzero_ps();
    for (Py_ssize_t k = seen->first; k < seen->last; k++) {
        __m512 value[8];
        for (int n = 0; n < width / LANES; n++) value[n] = _mm512_loadu_ps(values + k * width + n * LANES);
        for (int q = 0; q < queries; q++) {
            __m512 weight = _mm512_set1_ps(weights[q * row + k]);
            for (int n = 0; n < width / LANES; n++) sum[q][n] = _mm512_fmadd_ps(weight, value[n], sum[q][n]);
        }
    }
    for (int q = 0; q < queries; q++)
        for (int n = 0; n < width / LANES; n++)
            _mm512_storeu_ps(out[q] + n * LANES, _mm512_mul_ps(sum[q][n], _mm512_set1_ps(inverse[q])));
}

INLINE F32 void f32_text(const Job *job, Py_ssize_t head, Py_ssize_t start, Py_ssize_t length, int width, float *room) {
    const Py_ssize_t padded = rounded(length), row = padded + LANES; /* no power of two, which would share cache lines */
    float *keys = room, *values = keys + padded * width, *scores = values + length * width, *spare = scores + QUERIES * row;
    const float *q = (const float *)job->query.data + start * job->query.token + head * job->query.head;
    const float *k = (const float *)job->key.data + start * job->key.token + head / job->group * job->key.head;
    const float *v = (const float *)job->value.data + start * job->value.token + head / job->group * job->value.head;
    float *o = (float *)job->out + (start * job->heads + head) * width;
    for (Py_ssize_t panel = 0; panel < padded; panel += LANES)
        for (Py_ssize_t d = 0; d < width; d++)
            for (Py_ssize_t t = panel; t < panel + LANES; t++)
                keys[panel * width + d * LANES + t - panel] = t < length ? k[t * job->key.token + d] : 0;
    for (Py_ssize_t t = 0; t < length; t++) memcpy(values + t * width, v + t * job->value.token, width * sizeof(float));
    const __m512 scale = _mm512_set1_ps(job->scale * 1.44269504088896341f); /* log2 e: powers of two are cheap */
    for (Py_ssize_t block = 0; block < length; block += QUERIES) {
        const float *query[QUERIES];
        float *out[QUERIES], inverse[QUERIES];
        __m512 highest[QUERIES];
        const Seen seen = seen_by(job, block, length);
        const Py_ssize_t last = rounded(seen.last);
        for (int n = 0; n < QUERIES; n++) {
            Py_ssize_t t = block + n < length ? block + n : length - 1;
            query[n] = q + t * job->query.token;
            out[n] = block + n < length ? o + t * job->heads * width : spare;
            highest[n] = _mm512_set1_ps(LOWEST);
        }
        Py_ssize_t first = seen.first;
        for (; first + 2 * LANES <= last; first += 2 * LANES)
            f32_scores(query, keys, row, &seen, 2, first, width, scores, highest);
        if (first < last) f32_scores(query, keys, row, &seen, 1, first, width, scores, highest);
        for (int n = 0; n < QUERIES; n++) {
            float *found = scores + n * row;
            const __m512 most = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(highest[n])), scale);
            __m512 total = _mm512_setzero_ps();
            for (Py_ssize_t t = seen.first; t < last; t += LANES) {
                __m512 weight = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(found + t), scale, most));
                total = _mm512_add_ps(total, weight);
                _mm512_storeu_ps(found + t, weight);
            }
            inverse[n] = 1.0f / _mm512_reduce_add_ps(total);
        }
        const int step = width <= 32 ? 8 : width <= 96 ? 4 : 2; /* so that the sums stay in registers */
        for (int n = 0; n < QUERIES; n += step)
            f32_mix(scores + n * row, values, row, &seen, step, width, inverse + n, out + n);
    }
}

/* -- bfloat16: two neighbours in 32 bits; keys as pairs of dimensions (keys / 16, width / 2, 16), values as pairs of keys
 * (keys / 2, width) */

INLINE BF16 __m512bh both(uint32_t pair) { return (__m512bh)_mm512_set1_epi32((int)pair); }
INLINE uint32_t pair_at(const uint16_t *from) { uint32_t pair; memcpy(&pair, from, 4); return pair; }

INLINE BF16 void bf16_scores(const uint16_t *query[QUERIES], const uint32_t *keys, Py_ssize_t row, const Seen *seen,
                             int vectors, Py_ssize_t first, Py_ssize_t width, float *scores, __m512 highest[QUERIES]) {
    __m512 sum[QUERIES][2];
    for (int q = 0; q < QUERIES; q++)
        for (int n = 0; n < vectors; n++) sum[q][n] = _mm512_setzero_ps();
    for (Py_ssize_t d = 0; d < width / 2; d++) {
        __m512bh key[2];
        for (int n = 0; n < vectors; n++) key[n] = (__m512bh)_mm512_loadu_si512(keys + (first + n * LANES) * (width / 2) + d * LANES);
        for (int q = 0; q < QUERIES; q++) {
            __m512bh one = both(pair_at(query[q] + 2 * d));
            for (int n = 0; n < vectors; n++) sum[q][n] = _mm512_dpbf16_ps(sum[q][n], one, key[n]);
        }
    }
    for (int q = 0; q < QUERIES; q++)
        for (int n = 0; n < vectors; n++) {
            __m512 found = only_seen(sum[q][n], first + n * LANES, seen->low[q], seen->high[q]);
            highest[q] = _mm512_max_ps(highest[q], found);
            _mm512_storeu_ps(scores + q * row + first + n * LANES, found);
        }
}

INLINE BF16 void bf16_mix(const uint16_t *weights, const uint32_t *values, Py_ssize_t row, const Seen *seen, int queries,
                          int width, const float *inverse, uint16_t *out[]) {
    __m512 sum[QUERIES][8];
    for (int q = 0; q < queries; q++)
        for (int n = 0; n < width / LANES; n++) sum[q][n] = _mm512_setzero_ps();
    for (Py_ssize_t k = seen->first / 2; k < (seen->last + 1) / 2; k++) {
        __m512bh value[8];
        for (int n = 0; n < width / LANES; n++) value[n] = (__m512bh)_mm512_loadu_si512(values + k * width + n * LANES);
        for (int q = 0; q < queries; q++) {
            __m512bh weight = both(pair_at(weights + q * row + 2 * k));
            for (int n = 0; n < width / LANES; n++) sum[q][n] = _mm512_dpbf16_ps(sum[q][n], weight, value[n]);
        }
    }
    for (int q = 0; q < queries; q++)
        for (int n = 0; n < width / LANES; n++) {
            __m256bh found = _mm512_cvtneps_pbh(_mm512_mul_ps(sum[q][n], _mm512_set1_ps(inverse[q])));
            _mm256_storeu_si256((__m256i *)(out[q] + n * LANES), (__m256i)found);
        }
}

INLINE BF16 void bf16_text(const Job *job, Py_ssize_t head, Py_ssize_t start, Py_ssize_t length, int width, float *room) {
    const Py_ssize_t padded = rounded(length), pairs = (length + 1) / 2, row = padded + LANES;
    uint32_t *keys = (uint32_t *)room, *values = keys + padded * (width / 2);
    float *scores = (float *)(values + pairs * width);
    uint16_t *weights = (uint16_t *)(scores + QUERIES * row), *spare = weights + QUERIES * row;
    const uint16_t *q = (const uint16_t *)job->query.data + start * job->query.token + head * job->query.head;
    const uint16_t *k = (const uint16_t *)job->key.data + start * job->key.token + head / job->group * job->key.head;
    const uint16_t *v = (const uint16_t *)job->value.data + start * job->value.token + head / job->group * job->value.head;
    uint16_t *o = (uint16_t *)job->out + (start * job->heads + head) * width;
    for (Py_ssize_t panel = 0; panel < padded; panel += LANES)
        for (Py_ssize_t d = 0; d < width / 2; d++)
            for (Py_ssize_t t = panel; t < panel + LANES; t++)
                keys[panel * (width / 2) + d * LANES + t - panel] = t < length ? pair_at(k + t * job->key.token + 2 * d) : 0;
    for (Py_ssize_t p = 0; p < pairs; p++) {
        const uint16_t *one = v + 2 * p * job->value.token, *next = one + job->value.token;
        for (int d = 0; d < width; d++)
            values[p * width + d] = one[d] | (2 * p + 1 < length ? (uint32_t)next[d] << 16 : 0);
    }
    const __m512 scale = _mm512_set1_ps(job->scale * 1.44269504088896341f);
    for (Py_ssize_t block = 0; block < length; block += QUERIES) {
        const uint16_t *query[QUERIES];
        uint16_t *out[QUERIES];
        float inverse[QUERIES];
        __m512 highest[QUERIES];
        const Seen seen = seen_by(job, block, length);
        const Py_ssize_t last = rounded(seen.last);
        for (int n = 0; n < QUERIES; n++) {
            Py_ssize_t t = block + n < length ? block + n : length - 1;
            query[n] = q + t * job->query.token;
            out[n] = block + n < length ? o + t * job->heads * width : spare;
            highest[n] = _mm512_set1_ps(LOWEST);
        }
        Py_ssize_t first = seen.first;
        for (; first + 2 * LANES <= last; first += 2 * LANES)
            bf16_scores(query, keys, row, &seen, 2, first, width, scores, highest);
        if (first < last) bf16_scores(query, keys, row, &seen, 1, first, width, scores, highest);
        for (int n = 0; n < QUERIES; n++) {
            const float *found = scores + n * row;
            const __m512 most = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(highest[n])), scale);
            __m512 total = _mm512_setzero_ps();
            for (Py_ssize_t t = seen.first; t < last; t += LANES) {
                __m512 weight = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(found + t), scale, most));
                __m256i stored = (__m256i)_mm512_cvtneps_pbh(weight);
                total = _mm512_add_ps(total, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(stored), 16)));
                _mm256_storeu_si256((__m256i *)(weights + n * row + t), stored);
            }
            inverse[n] = 1.0f / _mm512_reduce_add_ps(total);
        }
        const int step = width <= 32 ? 8 : width <= 96 ? 4 : 2;
        for (int n = 0; n < QUERIES; n += step)
            bf16_mix(weights + n * row, values, row, &seen, step, width, inverse + n, out + n);
    }
}

/* -- all texts and heads; the width is made a constant, so that the loops over it are unrolled */

#define ALL_TEXTS(NAME, TARGET, TEXT)                                                                       \
    TARGET static void NAME(const Job *job, float *room) {                                                  \
        for (Py_ssize_t text = 0; text < job->texts; text++) {                                              \
            const Py_ssize_t start = job->edges[text], length = job->edges[text + 1] - start;               \
            for (Py_ssize_t head = 0; head < job->heads; head++) switch (job->width) {                      \
                case 16: TEXT(job, head, start, length, 16, room); break;                                   \
                case 32: TEXT(job, head, start, length, 32, room); break;                                   \
                case 64: TEXT(job, head, start, length, 64, room); break;                                   \
                case 96: TEXT(job, head, start, length, 96, room); break;                                   \
                case 128: TEXT(job, head, start, length, 128, room); break;                                 \
            }                                                                                               \
        }                                                                                                   \
    }
ALL_TEXTS(f32_all, F32, f32_text)
ALL_TEXTS(bf16_all, BF16, bf16_text)
#endif

static PyObject *supports(PyObject *self, PyObject *unused) {
    int f32 = 0, bf16 = 0;
#ifdef HAVE_KERNEL
    __builtin_cpu_init();
    f32 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl");
    bf16 = f32 && __builtin_cpu_supports("avx512bf16");
#endif
    return Py_BuildValue("(OO)", f32 ? Py_True : Py_False, bf16 ? Py_True : Py_False);
}

static PyObject *attend(PyObject *self, PyObject *args) {
#ifdef HAVE_KERNEL
    unsigned long long query, key, value, out, edges;
    Job job;
    int half;
    if (!PyArg_ParseTuple(args, "K(nn)K(nn)K(nn)KKnnnnfnpp", &query, &job.query.token, &job.query.head, &key, &job.key.token,
                          &job.key.head, &value, &job.value.token, &job.value.head, &out, &edges, &job.texts, &job.heads,
                          &job.group, &job.width, &job.scale, &job.window, &job.causal, &half))
        return NULL;
    job.query.data = (const void *)(uintptr_t)query, job.key.data = (const void *)(uintptr_t)key;
    job.value.data = (const void *)(uintptr_t)value, job.out = (void *)(uintptr_t)out;
    job.edges = (const int32_t *)(uintptr_t)edges;
    Py_ssize_t longest = 0;
    for (Py_ssize_t n = 0; n < job.texts; n++)
        if (job.edges[n + 1] - job.edges[n] > longest) longest = job.edges[n + 1] - job.edges[n];
    /* Keys, values, a block's scores and weights, one row that is thrown away: bfloat16 needs less. */
    float *room = malloc(sizeof(float) * (size_t)(rounded(longest) * 2 * job.width + (rounded(longest) + LANES) * 2 * QUERIES + job.width));
    if (room == NULL) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS;
    if (half) bf16_all(&job, room);
    else f32_all(&job, room);
    Py_END_ALLOW_THREADS;
    free(room);
    Py_RETURN_NONE;
#else
    PyErr_SetString(PyExc_NotImplementedError, "this build has no attention kernel");
    return NULL;
#endif
}

static PyMethodDef methods[] = {
    {"supports", supports, METH_NOARGS, "(float32, bfloat16): whether this CPU can run `attend` in each."},
    {"attend", attend, METH_VARARGS,
     "attend(query, steps, key, steps, value, steps, out, edges, texts, heads, group, width, scale, window, causal, bfloat16):\n"
     "addresses and, for each tensor, the steps (token, head) between its elements; group: heads that share a key head;\n"
     "width: 16, 32, 64, 96 or 128; window: a token sees those closer than this, 0: all. Releases the GIL."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_attention", "Attention of packed texts on AVX-512.", -1, methods};

PyMODINIT_FUNC PyInit__attention(void) { return PyModule_Create(&module); }
