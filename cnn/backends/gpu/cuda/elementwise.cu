// Kernels of each number alone, dropout, and softmax over rows.

// y[i] = f(a[i], b[i]) over flat arrays, in the wide type; b may be null, and f is then given 0. Whole vectors first,
// then the few last numbers one by one.
template <int V, class In, class Out, class F>
__device__ __forceinline__ void each(
    const In* __restrict__ a, const In* __restrict__ b, Out* __restrict__ y, long long size, F f) {
    typedef WideOf<In> A;
    constexpr int BATCH = V == 1 ? 4 : 2;  // loads in flight
    const long long thread = (long long)blockIdx.x * THREADS + threadIdx.x, step = (long long)gridDim.x * THREADS;
    const long long vectors = size / V;
    for (long long i = thread; i < vectors; i += BATCH * step) {
        Vector<In, V> left[BATCH], right[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (i + k * step < vectors) {
                left[k] = load<V>(a + (i + k * step) * V);
                if (b) right[k] = load<V>(b + (i + k * step) * V);
            }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (i + k * step < vectors) {
                Vector<Out, V> out;
#pragma unroll
                for (int v = 0; v < V; v++)
                    out.at[v] = narrow<Out>(f(widen(left[k].at[v]), b ? widen(right[k].at[v]) : (A)0));
                store(y + (i + k * step) * V, out);
            }
    }
    const long long last = vectors * V + thread;
    if (last < size) y[last] = narrow<Out>(f(widen(a[last]), b ? widen(b[last]) : (A)0));
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) activate(
    const T* __restrict__ x, T* __restrict__ y, long long size, int kind) {
    typedef WideOf<T> A;
    each<V>(x, (const T*)nullptr, y, size, [=](A value, A) { return activated(value, kind); });
}

// dx = dy * derivative; `other` is the layer's input x for SiLU and GELU, and its output y for the others.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) activate_backward(
    const T* __restrict__ dy, const T* __restrict__ other, T* __restrict__ dx, long long size, int kind) {
    typedef WideOf<T> A;
    each<V>(dy, other, dx, size, [=](A gradient, A value) { return gradient * activation_slope(value, value, kind); });
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) add(
    const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ y, long long size, int kind) {
    typedef WideOf<T> A;
    each<V>(a, b, y, size, [=](A left, A right) { return activated(left + right, kind); });
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) scale(
    const T* __restrict__ x, T* __restrict__ y, long long size, WideOf<T> factor) {
    typedef WideOf<T> A;
    each<V>(x, (const T*)nullptr, y, size, [=](A value, A) { return value * factor; });
}

// From one type to another; V of the wider one are 16 bytes.
template <class From, class To, int V>
__global__ void __launch_bounds__(THREADS, 4) convert(const From* __restrict__ x, To* __restrict__ y, long long size) {
    typedef WideOf<From> A;
    each<V>(x, (const From*)nullptr, y, size, [](A value, A) { return value; });
}

// x (rows, columns) times `factor` where the draw of (key, number of the row, column) is at least `rate`, else times 0.
// The rows' numbers are their places in x, unless `numbers` gives others. Its own backward.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) dropout(
    const T* __restrict__ x, T* __restrict__ y, const long long* __restrict__ numbers, int rows, int columns, int width,
    unsigned long long key, float rate, WideOf<T> factor) {
    const Columns<V> at(columns, width);
    if (!at.active) return;
    // A large image has more slices than a grid has blocks along y: each block takes every `gridDim.y`-th.
    for (int column = at.channel; column < columns; column += gridDim.y * width * V)
        for (long long row = at.first_row(); row < rows; row += at.row_step()) {
            Vector<T, V> values = load<V>(x + row * columns + column);
            const Draws draws(key, numbers ? numbers[row] : row);
#pragma unroll
            for (int v = 0; v < V; v++)
                values.at[v] = narrow<T>(widen(values.at[v]) * (draws[column + v] >= rate ? factor : (WideOf<T>)0));
            store(y + row * columns + column, values);
        }
}

// Softmax over the rows of x (rows, columns), a warp for each; and its backward, dx = y * (dy - sum of dy * y).
template <class A> __device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffff, value, distance);
    return value;
}
template <class A>
__global__ void __launch_bounds__(THREADS) softmax(const A* __restrict__ x, A* __restrict__ y, int rows, int columns) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    x += (long long)row * columns, y += (long long)row * columns;
    A largest = x[0], sum = 0;
    for (int c = lane; c < columns; c += 32) largest = max(largest, x[c]);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        largest = max(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    for (int c = lane; c < columns; c += 32) sum += exp(x[c] - largest);
    sum = warp_sum(sum);
    for (int c = lane; c < columns; c += 32) y[c] = exp(x[c] - largest) / sum;
}

template <class A>
__global__ void __launch_bounds__(THREADS) softmax_backward(
    const A* __restrict__ dy, const A* __restrict__ y, A* __restrict__ dx, int rows, int columns) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    dy += (long long)row * columns, y += (long long)row * columns, dx += (long long)row * columns;
    A sum = 0;
    for (int c = lane; c < columns; c += 32) sum += dy[c] * y[c];
    sum = warp_sum(sum);
    for (int c = lane; c < columns; c += 32) dx[c] = y[c] * (dy[c] - sum);
}
