// What the CPU kernels share: the types of activations, and the functions that compilers do not vectorize themselves.
// Everything is computed in float32; a value is rounded where PyTorch's operations round it.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

enum class BFloat16 : uint16_t {};  // its bits; no struct, which keeps compilers from vectorizing
using Half = _Float16;

inline float widen(float x) { return x; }
inline float widen(Half x) { return static_cast<float>(x); }
inline float widen(BFloat16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }

// To nearest, ties to even.
template <class T>
inline T narrow(float x) {
    if constexpr (std::is_same_v<T, BFloat16>) {
        const uint32_t u = __builtin_bit_cast(uint32_t, x);
        const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        return static_cast<BFloat16>(x != x ? 0x7fc0 : rounded);
    } else {
        return static_cast<T>(x);
    }
}

// e^x by 2^n times a polynomial (Moshier's Cephes, expf.c), to two units in the last place. Kept between e^-87 and e^88;
// NaN stays NaN.
inline float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return y * __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23);
}

// Calls f with a value of the type that Python's code stands for; native.py has the codes.
template <class F>
inline void with_type(int64_t code, F f) {
    switch (code) {
        case 0: return f(float{});
        case 1: return f(BFloat16{});
        case 2: return f(Half{});
    }
}

// Work so small that waking other threads for it costs more than they save.
constexpr int64_t SMALL = 8192;

inline int64_t num_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
