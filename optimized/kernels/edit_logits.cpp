// edit_logits.py on a CPU.
#include <algorithm>

#include "scalar.h"

namespace {

constexpr int64_t WORD = 32;
constexpr int32_t IN_PROMPT = 1 << 30;

}  // namespace

EXPORT void tandem_mask(float* logits, int64_t stride, int64_t size, const int64_t* rows, const int64_t* slots,
                        int64_t num_rows, const int32_t* bits, int64_t bits_stride, float* before, float* after) {
#pragma omp parallel for schedule(dynamic, 1) if (num_rows * size > 4 * SMALL)
    for (int64_t r = 0; r < num_rows; r++) {
        float* z = logits + rows[r] * stride;
        const int32_t* words = bits + slots[r] * bits_stride;
        float all = -INFINITY, left = -INFINITY;
        int is_spoiled = 0;
        for (int64_t start = 0; start < size; start += WORD) {
            const int64_t count = std::min(WORD, size - start);
            const uint32_t word = static_cast<uint32_t>(words[start / WORD]);
#pragma omp simd reduction(max : all, left) reduction(| : is_spoiled)
            for (int64_t i = 0; i < count; i++) {
                const float x = z[start + i], y = (word >> i) & 1 ? x : -INFINITY;
                is_spoiled |= x != x;
                all = x > all ? x : all;
                left = y > left ? y : left;
                z[start + i] = y;
            }
        }
        before[r] = is_spoiled ? NAN : all;
        after[r] = left;
    }
}

EXPORT void tandem_penalize(float* logits, int64_t stride, int64_t size, const int64_t* rows, const int64_t* slots,
                            int64_t num_rows, const int32_t* counts, const float* repetition, const float* frequency,
                            const float* presence) {
#pragma omp parallel for schedule(dynamic, 1) if (num_rows * size > 4 * SMALL)
    for (int64_t r = 0; r < num_rows; r++) {
        float* z = logits + rows[r] * stride;
        const int32_t* row = counts + slots[r] * size;
        const float divisor = repetition[r], each = frequency[r], once = presence[r];
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            const int32_t c = row[i] & (IN_PROMPT - 1);
            float x = z[i];
            const float repeated = x > 0 ? x / divisor : x * divisor;
            x = row[i] != 0 ? repeated : x;
            z[i] = c > 0 ? x - (each * static_cast<float>(c) + once) : x;
        }
    }
}
