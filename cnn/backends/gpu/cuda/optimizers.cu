// Optimizer steps and weight averages: one pass over flat vectors. Whether a step is carried out, and by which factor
// the gradient is clipped, is read from device memory, where `judge_step` has left it: no step waits for the host.

enum Outcome { OK, SCALE, LOSS, CORRECT };  // places in `outcome`, as in backends/base.py

// Carry out `step` for all of `size` elements, V at a time from element `head` on, which is aligned; the elements
// before it, and fewer than V at the end, one at a time.
template <int V, class Step>
__device__ __forceinline__ void for_all(const Step& step, long long size, int head) {
    const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x, vectors = (size - head) / V;
    for (long long i = thread; i < vectors; i += gridDim.x * (long long)THREADS) step.template apply<V>(head + i * V);
    const long long end = head + vectors * V;
    if (thread < head) step.template apply<1>(thread);
    else if (end + thread - head < size) step.template apply<1>(end + thread - head);
}

// Weight decay applies to the first `decayed` elements. Nesterov's momentum looks one step ahead.
template <class T> struct Sgd {
    T *weights, *velocity;
    const T* gradient;
    long long decayed;
    T scale, lr, momentum, decay;
    bool nesterov;
    template <int V> __device__ __forceinline__ void apply(long long first) const {
        Vector<T, V> w = load<V>(weights + first), v = load<V>(velocity + first);
        const Vector<T, V> g = load<V>(gradient + first);
#pragma unroll
        for (int i = 0; i < V; i++) {
            T grad = scale * g.at[i];
            if (first + i < decayed) grad += decay * w.at[i];
            v.at[i] = momentum * v.at[i] + grad;
            w.at[i] -= lr * (nesterov ? grad + momentum * v.at[i] : v.at[i]);
        }
        store(velocity + first, v);
        store(weights + first, w);
    }
};

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 3) sgd_step(
    T* __restrict__ weights, const T* __restrict__ gradient, T* __restrict__ velocity, long long size,
    long long decayed, int head, const double* __restrict__ outcome, T lr, T momentum, int nesterov, T decay) {
    if (outcome[OK] == 0) return;
    const Sgd<T> step = {weights, velocity, gradient, decayed, (T)outcome[SCALE], lr, momentum, decay, nesterov != 0};
    for_all<V>(step, size, head);
}

// `rate` and `root_scale` include the bias corrections; `kept` is what weight decay leaves of a weight.
template <class T> struct AdamW {
    T *weights, *first_moment, *second_moment;
    const T* gradient;
    long long decayed;
    T scale, rate, root_scale, beta1, rest1, beta2, rest2, epsilon, kept;
    template <int V> __device__ __forceinline__ void apply(long long first) const {
        Vector<T, V> w = load<V>(weights + first), m = load<V>(first_moment + first), v = load<V>(second_moment + first);
        const Vector<T, V> g = load<V>(gradient + first);
#pragma unroll
        for (int i = 0; i < V; i++) {
            const T grad = scale * g.at[i];
            m.at[i] = beta1 * m.at[i] + rest1 * grad;
            v.at[i] = beta2 * v.at[i] + rest2 * grad * grad;
            if (first + i < decayed) w.at[i] *= kept;
            w.at[i] -= rate * m.at[i] / (sqrt(v.at[i]) * root_scale + epsilon);
        }
        store(first_moment + first, m);
        store(second_moment + first, v);
        store(weights + first, w);
    }
};

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 3) adamw_step(
    T* __restrict__ weights, const T* __restrict__ gradient, T* __restrict__ first_moment,
    T* __restrict__ second_moment, long long size, long long decayed, int head, const double* __restrict__ outcome,
    T rate, T root_scale, T beta1, T rest1, T beta2, T rest2, T epsilon, T kept) {
    if (outcome[OK] == 0) return;
    const AdamW<T> step = {weights, first_moment, second_moment, gradient, decayed, (T)outcome[SCALE], rate, root_scale,
                           beta1, rest1, beta2, rest2, epsilon, kept};
    for_all<V>(step, size, head);
}

// Move an average towards `values` by the fraction `rate`.
template <class T> struct Average {
    T* average;
    const T* values;
    T rate;
    template <int V> __device__ __forceinline__ void apply(long long first) const {
        Vector<T, V> a = load<V>(average + first);
        const Vector<T, V> x = load<V>(values + first);
#pragma unroll
        for (int i = 0; i < V; i++) a.at[i] += rate * (x.at[i] - a.at[i]);
        store(average + first, a);
    }
};

template <class T, int V>
__global__ void __launch_bounds__(THREADS) average_step(
    T* __restrict__ average, const T* __restrict__ values, long long size, int head,
    const double* __restrict__ outcome, T rate) {
    if (outcome[OK] == 0) return;
    for_all<V>(Average<T>{average, values, rate}, size, head);
}

template <class T> struct Copy {
    T* target;
    const T* values;
    template <int V> __device__ __forceinline__ void apply(long long first) const {
        store(target + first, load<V>(values + first));
    }
};

template <class T, int V>
__global__ void __launch_bounds__(THREADS) copy_step(
    T* __restrict__ target, const T* __restrict__ values, long long size, int head,
    const double* __restrict__ outcome) {
    if (outcome[OK] == 0) return;
    for_all<V>(Copy<T>{target, values}, size, head);
}

// The sum over the block's threads, the same for all orders of threads; valid in thread 0.
__device__ __forceinline__ double block_sum(double x) {
    __shared__ double sums[THREADS / 32];
#pragma unroll
    for (int half = 16; half > 0; half /= 2) x += __shfl_xor_sync(0xffffffff, x, half);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < THREADS / 32; warp++) x += sums[warp];
    return x;
}

// partial[b] = the sum of squares of the b-th stretch of `stretch` vectors; the last block adds the elements that are
// left. Sums are double, so that no gradient whose norm is finite overflows.
template <class T, int V>
__global__ void __launch_bounds__(THREADS) sum_squares(
    const T* __restrict__ gradient, double* __restrict__ partial, long long size, int head, int stretch) {
    const long long vectors = (size - head) / V, first = blockIdx.x * (long long)stretch;
    const long long last = min(first + stretch, vectors), end = head + vectors * V;
    double sum = 0;
#pragma unroll 4
    for (long long i = first + threadIdx.x; i < last; i += THREADS) {
        const Vector<T, V> g = load<V>(gradient + head + i * V);
#pragma unroll
        for (int k = 0; k < V; k++) sum += (double)g.at[k] * (double)g.at[k];
    }
    if (blockIdx.x == gridDim.x - 1) {
        const int t = threadIdx.x;
        const long long at = t < head ? t : end + t - head;
        if (at < size) sum += (double)gradient[at] * (double)gradient[at];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// One block: the gradient's norm from its partial sums, and from that what becomes of the step.
template <class T>
__global__ void __launch_bounds__(THREADS) judge_step(
    const double* __restrict__ partial, int parts, const T* __restrict__ loss, const long long* __restrict__ correct,
    double clip, double* __restrict__ outcome) {
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) sum += partial[i];
    const double norm = sqrt(block_sum(sum));
    if (threadIdx.x > 0) return;
    const double value = (double)*loss;
    if (!is_finite(value) || !is_finite(norm)) outcome[OK] = 0;
    outcome[SCALE] = clip > 0 && clip < norm ? clip / norm : 1.0;
    outcome[LOSS] = value;
    outcome[CORRECT] = (double)*correct;
}
