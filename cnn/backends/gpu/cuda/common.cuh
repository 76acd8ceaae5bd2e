// Number types and activations that all kernels share.

typedef unsigned short bf16;  // the upper half of a float's bits: no header needed, and the same on a CPU

// The type in which numbers of type T are summed.
template <class T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((unsigned)x << 16); }
template <class T> __device__ __forceinline__ T narrow(float x) { return (T)x; }
template <class T> __device__ __forceinline__ T narrow(double x) { return (T)x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {  // to the nearest, ties to even; NaN stays NaN
    unsigned bits = __float_as_uint(x);
    return (bits & 0x7fffffff) > 0x7f800000 ? (bf16)0x7fff : (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Activations by number; `ACTIVATIONS` in kernels.py has the same order.
enum Activation { NONE, RELU, SIGMOID, TANH, SILU, GELU };
template <class A> __device__ __forceinline__ A sigmoid(A x) { return (A)0.5 * (1 + tanh((A)0.5 * x)); }
template <class A> __device__ __forceinline__ A gelu_tanh(A x) {  // the tanh approximation (Hendrycks and Gimpel, 2016)
    return tanh((A)0.7978845608028654 * (x + (A)0.044715 * x * x * x));
}
template <class A> __device__ __forceinline__ A activated(A x, int kind) {
    if (kind == RELU) return x > 0 || x != x ? x : (A)0;  // NaN stays NaN
    if (kind == SIGMOID) return sigmoid(x);
    if (kind == TANH) return tanh(x);
    if (kind == SILU) return x * sigmoid(x);
    if (kind == GELU) return (A)0.5 * x * (1 + gelu_tanh(x));
    return x;
}
// The derivative at x. y is the activation of x; SILU and GELU use x, the others only y.
template <class A> __device__ __forceinline__ A activation_slope(A x, A y, int kind) {
    if (kind == RELU) return y > 0 ? (A)1 : (A)0;
    if (kind == SIGMOID) return y * (1 - y);
    if (kind == TANH) return 1 - y * y;
    if (kind == SILU) {
        A gate = sigmoid(x);
        return gate * (1 + x * (1 - gate));
    }
    if (kind == GELU) {
        A inner = gelu_tanh(x), slope = (A)0.7978845608028654 * (1 + (A)(3 * 0.044715) * x * x);
        return (A)0.5 * (1 + inner) + (A)0.5 * x * (1 - inner * inner) * slope;
    }
    return 1;
}
