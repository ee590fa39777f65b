/* Rows of activations to unsigned bytes, each row by a scale and a middle of its own, and what is left to do after the product,
 * on CPUs with AVX-512.
 *
 * Quantising takes two passes over a row that stays in the first-level cache; no row sees another. Optional, as _attention.c is:
 * int8.py does the same with torch's operations, in many passes over memory.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAVE_KERNEL 1
#include <float.h>
#include <immintrin.h>
#include <stdint.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define SMALLEST 1e-30f /* of a row's range: its inverse is still a number */

/* Up to 16 values, zero past the end. bfloat16 is the upper half of a float32. */
INLINE AVX512 __m512 values(const void *x, Py_ssize_t at, __mmask16 there, int half) {
    if (!half) return _mm512_maskz_loadu_ps(there, (const float *)x + at);
    const __m256i bits = _mm256_maskz_loadu_epi16(there, (const uint16_t *)x + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

INLINE __mmask16 lanes(Py_ssize_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

/* The middle of a row's values is at 128, its largest and smallest 127 steps away. */
INLINE AVX512 void row(const void *x, Py_ssize_t width, int half, uint8_t *out, float *step, float *middle) {
    __m512 high = _mm512_set1_ps(-FLT_MAX), low = _mm512_set1_ps(FLT_MAX), odd = _mm512_setzero_ps();
    for (Py_ssize_t at = 0; at < width; at += LANES) {
        const __mmask16 there = lanes(width - at);
        const __m512 found = values(x, at, there, half);
        high = _mm512_mask_max_ps(high, there, found, high);
        low = _mm512_mask_min_ps(low, there, found, low);
        odd = _mm512_fmadd_ps(found, _mm512_setzero_ps(), odd); /* NaN where a value is NaN or infinite, which a maximum may hide */
    }
    const float most = _mm512_reduce_max_ps(high), least = _mm512_reduce_min_ps(low);
    const float range = most - least > SMALLEST ? most - least : SMALLEST;
    *step = range / 254 + _mm512_reduce_add_ps(odd);
    *middle = most / 2 + least / 2;
    const __m512 steps = _mm512_set1_ps(254 / range), middles = _mm512_set1_ps(*middle);
    for (Py_ssize_t at = 0; at < width; at += LANES) {
        const __mmask16 there = lanes(width - at);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(values(x, at, there, half), middles), steps));
        const __m512i moved = _mm512_max_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), _mm512_setzero_si512());
        _mm512_mask_cvtusepi32_storeu_epi8(out + at, there, moved);
    }
}

static AVX512 void rows_of(const void *x, Py_ssize_t rows, Py_ssize_t width, uint8_t *out, float *steps, float *middles, int half) {
    const Py_ssize_t bytes = width * (half ? 2 : 4);
    for (Py_ssize_t n = 0; n < rows; n++)
        row((const char *)x + n * bytes, width, half, out + n * width, steps + n, middles + n);
}

static AVX512 void finish_rows(
    void *y, Py_ssize_t rows, Py_ssize_t width, const float *steps, const float *middles, const float *sums, const float *bias, int half
) {
    for (Py_ssize_t n = 0; n < rows; n++) {
        const __m512 step = _mm512_set1_ps(steps[n]), middle = _mm512_set1_ps(middles[n]);
        for (Py_ssize_t at = 0; at < width; at += LANES) {
            const __mmask16 there = lanes(width - at);
            const __m512 more = _mm512_fmadd_ps(middle, _mm512_maskz_loadu_ps(there, sums + at), _mm512_maskz_loadu_ps(there, bias + at));
            const __m512 whole = _mm512_fmadd_ps(values(y, n * width + at, there, half), step, more);
            if (!half) {
                _mm512_mask_storeu_ps((float *)y + n * width + at, there, whole);
                continue;
            }
            /* To the nearest bfloat16, ties to even; NaN is kept from becoming infinite. */
            const __m512i bits = _mm512_castps_si512(whole);
            const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            const __m512i kept = _mm512_mask_or_epi32(up, _mm512_cmp_ps_mask(whole, whole, _CMP_UNORD_Q), bits, _mm512_set1_epi32(1 << 22));
            _mm256_mask_storeu_epi16((uint16_t *)y + n * width + at, there, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
        }
    }
}

static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

static PyObject *quantise(PyObject *self, PyObject *args) {
    Py_ssize_t x, rows, width, out, steps, middles;
    int half;
    if (!PyArg_ParseTuple(args, "nnnnnnp", &x, &rows, &width, &out, &steps, &middles, &half)) return NULL;
#ifdef HAVE_KERNEL
    if (supported()) {
        Py_BEGIN_ALLOW_THREADS
        rows_of((const void *)x, rows, width, (uint8_t *)out, (float *)steps, (float *)middles, half);
        Py_END_ALLOW_THREADS
        Py_RETURN_NONE;
    }
#endif
    PyErr_SetString(PyExc_RuntimeError, "this CPU has no AVX-512");
    return NULL;
}

static PyObject *finish(PyObject *self, PyObject *args) {
    Py_ssize_t y, rows, width, steps, middles, sums, bias;
    int half;
    if (!PyArg_ParseTuple(args, "nnnnnnnp", &y, &rows, &width, &steps, &middles, &sums, &bias, &half)) return NULL;
#ifdef HAVE_KERNEL
    if (supported()) {
        Py_BEGIN_ALLOW_THREADS
        finish_rows(
            (void *)y, rows, width, (const float *)steps, (const float *)middles, (const float *)sums, (const float *)bias, half);
        Py_END_ALLOW_THREADS
        Py_RETURN_NONE;
    }
#endif
    PyErr_SetString(PyExc_RuntimeError, "this CPU has no AVX-512");
    return NULL;
}

static PyMethodDef methods[] = {
    {"quantise", quantise, METH_VARARGS,
     "quantise(x, rows, width, out, steps, middles, bfloat16): addresses of contiguous float32 or bfloat16 (rows, width), uint8\n"
     "(rows, width), and float32 (rows,) twice. Releases the GIL."},
    {"finish", finish, METH_VARARGS,
     "finish(y, rows, width, steps, middles, sums, bias, bfloat16): y * steps + middles * sums + bias in place; addresses of\n"
     "contiguous float32 or bfloat16 (rows, width), float32 (rows,) twice and float32 (width,) twice. Releases the GIL."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_int8", "Quantising rows on AVX-512.", -1, methods};

PyMODINIT_FUNC PyInit__int8(void) { return PyModule_Create(&module); }
