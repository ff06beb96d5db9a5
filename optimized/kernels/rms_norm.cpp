// rms_norm.py on a CPU.
#include "scalar.h"

namespace {

// Rows may lie apart by strides of an outer and an inner index, as heads of a projection do.
template <class T>
struct Rows {
    const T* start;
    int64_t outer, inner;

    const T* at(int64_t row, int64_t num_inner) const {
        return start + row / num_inner * outer + row % num_inner * inner;
    }
};

template <class T, class W>
void norm_row(const T* x, const T* added, float scale, const W* weight, float eps, int64_t size, T* y, T* sum) {
    float squares = 0;
    if (added != nullptr) {
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < size; i++) {
            const T s = narrow<T>(widen(x[i]) + widen(narrow<T>(widen(added[i]) * scale)));
            sum[i] = s;
            squares += widen(s) * widen(s);
        }
        x = sum;
    } else {
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < size; i++) squares += widen(x[i]) * widen(x[i]);
    }
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
        const float z = widen(x[i]) * factor;
        if constexpr (std::is_same_v<W, float> && !std::is_same_v<T, float>) {
            y[i] = narrow<T>(z * weight[i]);  // the weight in float32 says: round late
        } else {
            y[i] = narrow<T>(widen(narrow<T>(z)) * widen(weight[i]));
        }
    }
}

}  // namespace

EXPORT void tandem_rms_norm(int64_t type, int64_t weight_is_float, const void* x, int64_t x_outer, int64_t x_inner,
                            const void* added, int64_t added_outer, int64_t added_inner, const void* weight,
                            int64_t num_rows, int64_t num_inner, int64_t size, float eps, float scale, void* y,
                            void* sum) {
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
        const Rows<T> xs{static_cast<const T*>(x), x_outer, x_inner};
        const Rows<T> others{static_cast<const T*>(added), added_outer, added_inner};
#pragma omp parallel for if (num_rows * size > SMALL)
        for (int64_t row = 0; row < num_rows; row++) {
            const T* other = added == nullptr ? nullptr : others.at(row, num_inner);
            T* y_row = static_cast<T*>(y) + row * size;
            T* sum_row = static_cast<T*>(sum) + (added == nullptr ? 0 : row * size);
            if (weight_is_float) {
                const auto* w = static_cast<const float*>(weight);
                norm_row(xs.at(row, num_inner), other, scale, w, eps, size, y_row, sum_row);
            } else {
                const auto* w = static_cast<const T*>(weight);
                norm_row(xs.at(row, num_inner), other, scale, w, eps, size, y_row, sum_row);
            }
        }
    });
}
