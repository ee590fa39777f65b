/* Rows of activations to unsigned bytes with the zero at 128, each row by a scale of its own, on CPUs with AVX-512.
 *
 * Two passes over a row that stays in the first-level cache. No row sees another. Optional, as _attention.c is: int8.py does the
 * same with torch's operations, in six passes over memory.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAVE_KERNEL 1
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define SMALLEST 1e-30f /* of a row's largest value: its inverse is still a number */

/* Up to 16 values, zero past the end. bfloat16 is the upper half of a float32. */
INLINE AVX512 __m512 values(const void *x, Py_ssize_t at, __mmask16 there, int half) {
    if (!half) return _mm512_maskz_loadu_ps(there, (const float *)x + at);
    const __m256i bits = _mm256_maskz_loadu_epi16(there, (const uint16_t *)x + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

INLINE __mmask16 lanes(Py_ssize_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

INLINE AVX512 void row(const void *x, Py_ssize_t width, int half, uint8_t *out, float *scale) {
    /* Without their sign, floats are ordered as whole numbers are, infinity and then NaN above all: these show in the scale. */
    __m512i most = _mm512_setzero_si512();
    for (Py_ssize_t at = 0; at < width; at += LANES) {
        const __m512i bits = _mm512_castps_si512(values(x, at, lanes(width - at), half));
        most = _mm512_max_epi32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    const int32_t bits = _mm512_reduce_max_epi32(most);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    if (largest < SMALLEST) largest = SMALLEST;
    *scale = largest / 127;
    const __m512 steps = _mm512_set1_ps(127 / largest);
    for (Py_ssize_t at = 0; at < width; at += LANES) {
        const __mmask16 there = lanes(width - at);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values(x, at, there, half), steps));
        const __m512i moved = _mm512_max_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), _mm512_setzero_si512());
        _mm512_mask_cvtusepi32_storeu_epi8(out + at, there, moved);
    }
}

static AVX512 void rows_float(const float *x, Py_ssize_t rows, Py_ssize_t width, uint8_t *out, float *scales) {
    for (Py_ssize_t n = 0; n < rows; n++) row(x + n * width, width, 0, out + n * width, scales + n);
}

static AVX512 void rows_half(const uint16_t *x, Py_ssize_t rows, Py_ssize_t width, uint8_t *out, float *scales) {
    for (Py_ssize_t n = 0; n < rows; n++) row(x + n * width, width, 1, out + n * width, scales + n);
}
#endif

static PyObject *quantise(PyObject *self, PyObject *args) {
    Py_ssize_t x, rows, width, out, scales;
    int half;
    if (!PyArg_ParseTuple(args, "nnnnnp", &x, &rows, &width, &out, &scales, &half)) return NULL;
#ifdef HAVE_KERNEL
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        Py_BEGIN_ALLOW_THREADS
        if (half) rows_half((const uint16_t *)x, rows, width, (uint8_t *)out, (float *)scales);
        else rows_float((const float *)x, rows, width, (uint8_t *)out, (float *)scales);
        Py_END_ALLOW_THREADS
        Py_RETURN_NONE;
    }
#endif
    PyErr_SetString(PyExc_RuntimeError, "this CPU has no AVX-512");
    return NULL;
}

static PyMethodDef methods[] = {
    {"quantise", quantise, METH_VARARGS,
     "quantise(x, rows, width, out, scales, bfloat16): addresses of contiguous float32 or bfloat16 (rows, width), uint8\n"
     "(rows, width) and float32 (rows,). Releases the GIL."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_int8", "Quantising rows on AVX-512.", -1, methods};

PyMODINIT_FUNC PyInit__int8(void) { return PyModule_Create(&module); }
