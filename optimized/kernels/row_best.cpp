// row_best.py on a CPU.
#include "scalar.h"

namespace {

constexpr int64_t BLOCK = 256;

// The first place of `value`, which is somewhere in the row.
int64_t find(const float* row, int64_t size, float value) {
    for (int64_t start = 0;; start += BLOCK) {
        const int64_t end = start + BLOCK < size ? start + BLOCK : size;
        int is_here = 0;
#pragma omp simd reduction(| : is_here)
        for (int64_t i = start; i < end; i++) is_here |= row[i] == value;
        if (!is_here) continue;
        for (int64_t i = start;; i++) {
            if (row[i] == value) return i;
        }
    }
}

}  // namespace

EXPORT void tandem_row_best(const float* x, int64_t stride, int64_t num_rows, int64_t size, float* greatest,
                            int64_t* first) {
#pragma omp parallel for if (num_rows * size > 8 * SMALL)
    for (int64_t r = 0; r < num_rows; r++) {
        const float* row = x + r * stride;
        float best = -INFINITY;
        int is_spoiled = 0;
#pragma omp simd reduction(max : best) reduction(| : is_spoiled)
        for (int64_t i = 0; i < size; i++) {
            best = row[i] > best ? row[i] : best;
            is_spoiled |= row[i] != row[i];
        }
        greatest[r] = is_spoiled ? NAN : best;
        first[r] = is_spoiled ? 0 : find(row, size, best);  // nobody takes a token of a row that is no numbers
    }
}
