// activation.py on a CPU.
#include "scalar.h"

namespace {

struct Silu {
    float operator()(float x) const { return x / (1.0f + exp_of(-x)); }
};

// (1 + tanh(z)) / 2 = 1 / (1 + exp(-2z)), z = sqrt(2 / pi) (x + 0.044715 x^3)
struct GeluTanh {
    float operator()(float x) const { return x / (1.0f + exp_of(-1.5957691216f * (x + 0.044715f * x * x * x))); }
};

struct Gelu {
    float operator()(float x) const { return x * 0.5f * (1.0f + std::erf(x * 0.70710678f)); }
};

template <class T, class Activation>
void gated(const T* x, int64_t stride, int64_t num_rows, int64_t size, T* y) {
    const Activation act;
#pragma omp parallel for if (num_rows * size > SMALL)
    for (int64_t row = 0; row < num_rows; row++) {
        const T* gate = x + row * stride;
        const T* up = gate + size;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            y[row * size + i] = narrow<T>(widen(narrow<T>(act(widen(gate[i])))) * widen(up[i]));
        }
    }
}

}  // namespace

EXPORT void tandem_gated(int64_t type, int64_t activation, const void* x, int64_t stride, int64_t num_rows,
                         int64_t size, void* y) {
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
        const auto* from = static_cast<const T*>(x);
        auto* to = static_cast<T*>(y);
        switch (activation) {
            case 0: return gated<T, Silu>(from, stride, num_rows, size, to);
            case 1: return gated<T, Gelu>(from, stride, num_rows, size, to);
            case 2: return gated<T, GeluTanh>(from, stride, num_rows, size, to);
        }
    });
}
