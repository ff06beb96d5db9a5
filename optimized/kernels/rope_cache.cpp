// rope_cache.py on a CPU.
#include <algorithm>

#include "scalar.h"

namespace {

// Turn the channel pairs (i, half + i) by the token's angles; channels behind them stay.
template <class T>
void rotate(const T* x, const float* cos, const float* sin, int64_t half, int64_t d, T* y) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float a = widen(x[i]), b = widen(x[half + i]);
        y[i] = narrow<T>(a * cos[i] - b * sin[i]);
        y[half + i] = narrow<T>(b * cos[i] + a * sin[i]);
    }
    std::copy(x + 2 * half, x + d, y + 2 * half);
}

}  // namespace

// q, k, v: [T, H or H_kv, d], the heads of a token beside each other. cos, sin: [max_len, half].
// keys, values: [num_blocks, num_kv_heads, block_size, d].
EXPORT void tandem_rotate_and_store(int64_t type, const void* q, const void* k, const void* v, int64_t q_stride,
                                    int64_t k_stride, int64_t v_stride, const float* cos, const float* sin,
                                    int64_t half, const int64_t* positions, const int64_t* slots, int64_t num_tokens,
                                    int64_t num_heads, int64_t num_kv_heads, int64_t block_size, int64_t d,
                                    void* q_out, void* keys, void* values) {
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
#pragma omp parallel for if (num_tokens * num_heads * d > SMALL)
        for (int64_t t = 0; t < num_tokens; t++) {
            const float *c = cos + positions[t] * half, *s = sin + positions[t] * half;
            for (int64_t h = 0; h < num_heads; h++) {
                T* to = static_cast<T*>(q_out) + (t * num_heads + h) * d;
                rotate(static_cast<const T*>(q) + t * q_stride + h * d, c, s, half, d, to);
            }
            if (slots[t] < 0) continue;
            for (int64_t h = 0; h < num_kv_heads; h++) {
                const int64_t block = slots[t] / block_size, slot = slots[t] % block_size;
                const int64_t at = ((block * num_kv_heads + h) * block_size + slot) * d;
                rotate(static_cast<const T*>(k) + t * k_stride + h * d, c, s, half, d, static_cast<T*>(keys) + at);
                const T* from = static_cast<const T*>(v) + t * v_stride + h * d;
                std::copy(from, from + d, static_cast<T*>(values) + at);
            }
        }
    });
}
