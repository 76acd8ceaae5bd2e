// Number types and activations that all kernels share.

typedef unsigned short bf16;  // the upper half of a float's bits: no header needed, and the same on a CPU

// The type in which numbers of type T are summed.
template <class T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };
template <class T> using WideOf = typename Wide<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((unsigned)x << 16); }
template <class T> __device__ __forceinline__ T narrow(float x) { return (T)x; }
template <class T> __device__ __forceinline__ T narrow(double x) { return (T)x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {  // to the nearest, ties to even; NaN stays NaN
#ifdef CUDA_CPU
    unsigned bits = __float_as_uint(x);
    return (bits & 0x7fffffff) > 0x7f800000 ? (bf16)0x7fff : (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
    bf16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
#endif
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

// Activate V numbers, and multiply their gradients by the derivatives: the kind is asked once per vector where it is
// one of the two most common, none and ReLU.
template <class A, int V> __device__ __forceinline__ void activate_all(A (&x)[V], int kind) {
    if (kind == NONE) return;
    if (kind == RELU) {
#pragma unroll
        for (int v = 0; v < V; v++) x[v] = activated(x[v], RELU);
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) x[v] = activated(x[v], kind);
    }
}
template <class A, int V> __device__ __forceinline__ void times_slope(A (&d)[V], const A (&x)[V], int kind) {
    if (kind == NONE) return;
    if (kind == RELU) {
#pragma unroll
        for (int v = 0; v < V; v++) d[v] *= x[v] > 0 ? (A)1 : (A)0;
    } else {
#pragma unroll
        for (int v = 0; v < V; v++) d[v] *= activation_slope(x[v], activated(x[v], kind), kind);
    }
}

// Neither infinite nor NaN.
template <class A> __device__ __forceinline__ bool is_finite(A x) { return x - x == 0; }

// V neighbours in memory, loaded or stored by one instruction if they are aligned and at most 16 bytes.
template <class T, int V> struct __align__(V * sizeof(T)) Vector { T at[V]; };
template <int V, class T> __device__ __forceinline__ Vector<T, V> load(const T* from) {
    return *reinterpret_cast<const Vector<T, V>*>(from);
}
template <class T, int V> __device__ __forceinline__ void store(T* to, const Vector<T, V>& values) {
    *reinterpret_cast<Vector<T, V>*>(to) = values;
}

// How a block covers rows of channels: a thread has V neighbouring channels and every `lanes`-th row. The channels of a
// block are a slice of at most `width` vectors, chosen by the grid's y. Threads that follow each other are neighbours
// in memory for any number of channels. `Layout` in layout.py chooses the width.
constexpr int THREADS = 256;
template <int V> constexpr int MAX_WIDTH = V == 1 ? THREADS : 64;
template <int V> struct Columns {
    int width, lanes, lane;
    int first, count;  // the slice's channels
    int own, channel;  // the thread's first channel, counted from the slice's first and from 0
    bool active;       // false for a thread with nothing to do, which must still take part in barriers
    __device__ __forceinline__ Columns(int channels, int slice_width) : width(slice_width) {
        lanes = blockDim.x / width;
        lane = threadIdx.x / width;
        first = blockIdx.y * width * V;
        count = min(width * V, channels - first);
        own = (threadIdx.x - lane * width) * V;
        channel = first + own;
        active = lane < lanes && own < count;
    }
    // The rows of a kernel whose blocks go through all rows by turns.
    __device__ __forceinline__ long long first_row() const { return (long long)blockIdx.x * lanes + lane; }
    __device__ __forceinline__ long long row_step() const { return (long long)gridDim.x * lanes; }
};

// Sums over a block: columns of shared memory, one per thread, V to a channel group. Their rows are longer than the
// block, so that neither threads with neighbouring columns nor those with neighbouring channels meet in a bank.
template <int V> constexpr int PITCH = THREADS + 32 / V;
template <int V, int K, class A>
__device__ __forceinline__ void put_column(A (*columns)[PITCH<V>], const A (&values)[K]) {
#pragma unroll
    for (int k = 0; k < K; k++) columns[k][threadIdx.x] = values[k];
}
// Add the K columns of all lanes to those of lane 0, pairwise in a fixed order. Channel i of the slice is then at
// [i % V][i / V]; further sums of it are V rows apart.
template <int K, int V, class A>
__device__ __forceinline__ void add_lanes(A (*columns)[PITCH<V>], const Columns<V>& at) {
    for (int rest = at.lanes; rest > 1;) {
        int half = (rest + 1) / 2;
        __syncthreads();
        if (at.lane + half < rest)
#pragma unroll
            for (int k = 0; k < K; k++) columns[k][threadIdx.x] += columns[k][threadIdx.x + half * at.width];
        rest = half;
    }
    __syncthreads();
}

// A thread's V neighbours in shared memory, by 16 bytes at a time. Of 32 bytes, four of eight threads load the second half
// first: eight threads' first halves alone would meet in pairs in their banks.
template <int V, class A> __device__ __forceinline__ void get_own(A (&own)[V], const A* shared) {
    if constexpr (V * sizeof(A) == 32) {
        constexpr int N = V / 2;
        const bool swap = threadIdx.x & 4;
        const Vector<A, N> one = load<N>(shared + swap * N), other = load<N>(shared + !swap * N);
#pragma unroll
        for (int n = 0; n < N; n++) {
            own[n] = swap ? other.at[n] : one.at[n];
            own[N + n] = swap ? one.at[n] : other.at[n];
        }
    } else {
        static_assert(V * sizeof(A) <= 16, "one load");
        const Vector<A, V> all = load<V>(shared);
#pragma unroll
        for (int n = 0; n < V; n++) own[n] = all.at[n];
    }
}

// Uniform numbers in [0, 1) of a row, by column: `uniform` of cnn/rng.py (SplitMix64), bit for bit.
constexpr unsigned long long GOLDEN_GAMMA = 0x9e3779b97f4a7c15ull;
struct Draws {
    unsigned long long row;

    static __device__ __forceinline__ unsigned long long mix(unsigned long long z) {
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        return z ^ z >> 31;
    }
    __device__ __forceinline__ Draws(unsigned long long key, long long number)
        : row(mix((unsigned long long)number * GOLDEN_GAMMA + key)) {}
    __device__ __forceinline__ float operator[](int column) const {
        const unsigned long long bits = mix(row + (unsigned long long)(column + 1) * GOLDEN_GAMMA);
        return (float)(unsigned)(bits >> 40) * 5.9604644775390625e-8f;  // 2^-24
    }
};
