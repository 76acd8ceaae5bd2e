// Batch norm over the rows of x (rows, channels), and sums over rows. Statistics and sums take two launches: blocks
// write partial results for stretches of rows, and a merge kernel combines them in a fixed order.

// Per block and channel, the mean of `stretch` rows and the sum of squared distances from it: partial (blocks, 2,
// channels). All threads measure from the block's first row. Since it is one of the rows, the squared distances from it
// sum to at most rows + 1 times those from the mean, and so the difference of sums keeps its significant digits.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) norm_statistics(
    const T* __restrict__ x, WideOf<T>* __restrict__ partial, int rows, int channels, int width,
    int stretch) {
    typedef WideOf<T> A;
    constexpr int BATCH = V == 1 ? 8 : 4;  // loads in flight
    __shared__ A columns[2 * V][PITCH<V>];
    const Columns<V> at(channels, width);
    const long long first = (long long)blockIdx.x * stretch, last = min(first + stretch, (long long)rows);
    A sums[2 * V] = {};
    if (at.active) {
        const T* base = x + at.channel;
        const Vector<T, V> origin = load<V>(base + first * channels);
        for (long long row = first + at.lane; row < last; row += BATCH * at.lanes) {
            Vector<T, V> values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (row + i * at.lanes < last) values[i] = load<V>(base + (row + i * at.lanes) * channels);
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (row + i * at.lanes < last)
#pragma unroll
                    for (int v = 0; v < V; v++) {
                        A distance = widen(values[i].at[v]) - widen(origin.at[v]);
                        sums[v] += distance;
                        sums[V + v] += distance * distance;
                    }
        }
    }
    put_column<V>(columns, sums);
    add_lanes<2 * V, V>(columns, at);
    const A count = (A)(last - first);
    for (int i = threadIdx.x; i < at.count; i += THREADS) {
        A sum = columns[i % V][i / V], mean = sum / count, squares = columns[V + i % V][i / V] - sum * mean;
        A* out = partial + (long long)(2 * blockIdx.x) * channels + at.first + i;
        out[0] = widen(x[first * channels + at.first + i]) + mean;
        out[channels] = squares < 0 ? (A)0 : squares;  // below 0 only by rounding; NaN stays NaN
    }
}

// Count, mean and sum of squared distances from the mean, merged by the formula of Chan, Golub and LeVeque (1979).
template <class A> struct Moments {
    A count, mean, squares;
    __device__ __forceinline__ void merge(A n, A other_mean, A other_squares) {
        if (n == 0) return;
        if (count == 0) {
            count = n, mean = other_mean, squares = other_squares;
            return;
        }
        A share = n / (count + n), distance = other_mean - mean;
        mean += distance * share;
        squares += other_squares + distance * distance * (count * share);
        count += n;
    }
};

// Merge kernels: a block has MERGE_CHANNELS neighbouring channels (one sector of floats); each of its lanes combines
// every MERGE_LANES-th partial result, then the lanes are combined pairwise.
constexpr int MERGE_CHANNELS = 8, MERGE_LANES = 64, MERGE_BATCH = 4;

// Mean and biased variance of all rows from `partial` (blocks, 2, channels), block b for rows from b * stretch. Moves
// the running statistics, if any, towards the mean and the unbiased variance, unless one of these is not finite.
template <class A>
__global__ void __launch_bounds__(MERGE_CHANNELS * MERGE_LANES) norm_merge(
    const A* __restrict__ partial, A* __restrict__ mean, A* __restrict__ variance, A* __restrict__ running_mean,
    A* __restrict__ running_variance, A momentum, int rows, int channels, int stretch, int blocks) {
    __shared__ A counts[MERGE_LANES][MERGE_CHANNELS], means[MERGE_LANES][MERGE_CHANNELS];
    __shared__ A squares[MERGE_LANES][MERGE_CHANNELS];
    const int c = threadIdx.x % MERGE_CHANNELS, lane = threadIdx.x / MERGE_CHANNELS;
    const int channel = blockIdx.x * MERGE_CHANNELS + c;
    Moments<A> own = {0, 0, 0};
    if (channel < channels)
        for (int block = lane; block < blocks; block += MERGE_BATCH * MERGE_LANES) {
            A values[MERGE_BATCH][2];
#pragma unroll
            for (int i = 0; i < MERGE_BATCH; i++) {
                const int b = block + i * MERGE_LANES;
                const A* from = partial + (long long)(2 * b) * channels + channel;
                if (b < blocks) values[i][0] = from[0], values[i][1] = from[channels];
            }
#pragma unroll
            for (int i = 0; i < MERGE_BATCH; i++) {
                const int b = block + i * MERGE_LANES;
                if (b < blocks) own.merge((A)min(stretch, rows - b * stretch), values[i][0], values[i][1]);
            }
        }
    counts[lane][c] = own.count, means[lane][c] = own.mean, squares[lane][c] = own.squares;
    for (int half = MERGE_LANES / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half) {
            own.merge(counts[lane + half][c], means[lane + half][c], squares[lane + half][c]);
            counts[lane][c] = own.count, means[lane][c] = own.mean, squares[lane][c] = own.squares;
        }
    }
    if (lane > 0 || channel >= channels) return;
    const A biased = own.squares / rows, unbiased = own.squares / max(rows - 1, 1);
    mean[channel] = own.mean;
    variance[channel] = biased;
    if (running_mean && is_finite(own.mean) && is_finite(unbiased)) {
        running_mean[channel] += momentum * (own.mean - running_mean[channel]);
        running_variance[channel] += momentum * (unbiased - running_variance[channel]);
    }
}

// Sums over the blocks of `partial` (blocks, K, channels): first (channels,) and, if K is 2, second (channels,).
template <class A, int K>
__global__ void __launch_bounds__(MERGE_CHANNELS * MERGE_LANES) sums_merge(
    const A* __restrict__ partial, A* __restrict__ first, A* __restrict__ second, int channels, int blocks) {
    __shared__ A totals[K][MERGE_LANES][MERGE_CHANNELS];
    const int c = threadIdx.x % MERGE_CHANNELS, lane = threadIdx.x / MERGE_CHANNELS;
    const int channel = blockIdx.x * MERGE_CHANNELS + c;
    A sums[K] = {};
    if (channel < channels)
#pragma unroll 4
        for (int block = lane; block < blocks; block += MERGE_LANES)
#pragma unroll
            for (int k = 0; k < K; k++) sums[k] += partial[((long long)block * K + k) * channels + channel];
#pragma unroll
    for (int k = 0; k < K; k++) totals[k][lane][c] = sums[k];
    for (int half = MERGE_LANES / 2; half > 0; half /= 2) {
        __syncthreads();
        if (lane < half)
#pragma unroll
            for (int k = 0; k < K; k++) totals[k][lane][c] += totals[k][lane + half][c];
    }
    if (lane > 0 || channel >= channels) return;
    first[channel] = totals[0][0][c];
    if (K == 2) second[channel] = totals[K - 1][0][c];
}

// What turns x into z = (x - mean) * factor + shift, for a thread's channels. It is read through shared memory, since
// neighbouring threads would not load neighbours.
template <class A, int V> struct Affine { A mean[V], factor[V], shift[V]; };
template <class A, int V>
__device__ __forceinline__ Affine<A, V> affine_of(
    A (*shared)[MAX_WIDTH<V> * V], const A* scale, const A* shift, const A* mean, const A* variance, A epsilon,
    const Columns<V>& at) {
    for (int i = threadIdx.x; i < at.count; i += THREADS) {
        shared[0][i] = mean[at.first + i];
        shared[1][i] = scale[at.first + i] / (A)sqrt(variance[at.first + i] + epsilon);
        shared[2][i] = shift[at.first + i];
    }
    __syncthreads();
    Affine<A, V> own = {};
    if (at.active) {
        get_own<V>(own.mean, shared[0] + at.own);
        get_own<V>(own.factor, shared[1] + at.own);
        get_own<V>(own.shift, shared[2] + at.own);
    }
    return own;
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 2) norm_apply(
    const T* __restrict__ x, const WideOf<T>* __restrict__ scale,
    const WideOf<T>* __restrict__ shift, const WideOf<T>* __restrict__ mean,
    const WideOf<T>* __restrict__ variance, T* __restrict__ y, int rows, int channels, int width,
    WideOf<T> epsilon, int kind) {
    typedef WideOf<T> A;
    constexpr int BATCH = 5;
    __shared__ __align__(16) A shared[3][MAX_WIDTH<V> * V];
    const Columns<V> at(channels, width);
    const Affine<A, V> own = affine_of<A, V>(shared, scale, shift, mean, variance, epsilon, at);
    if (!at.active) return;
    const long long step = at.row_step();
    for (long long row = at.first_row(); row < rows; row += BATCH * step) {
        Vector<T, V> values[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (row + i * step < rows) values[i] = load<V>(x + (row + i * step) * channels + at.channel);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (row + i * step >= rows) break;
            A z[V];
#pragma unroll
            for (int v = 0; v < V; v++) z[v] = (widen(values[i].at[v]) - own.mean[v]) * own.factor[v] + own.shift[v];
            activate_all(z, kind);
#pragma unroll
            for (int v = 0; v < V; v++) values[i].at[v] = narrow<T>(z[v]);
            store(y + (row + i * step) * channels + at.channel, values[i]);
        }
    }
}

// dz = dy * activation'(z) of one vector, and how far its x are from the mean.
template <class A, int V, class T>
__device__ __forceinline__ void pre_activation_gradient(
    A (&dz)[V], A (&centred)[V], const Vector<T, V>& dy, const Vector<T, V>& x, const Affine<A, V>& own, int kind) {
    A z[V];
#pragma unroll
    for (int v = 0; v < V; v++) {
        centred[v] = widen(x.at[v]) - own.mean[v];
        z[v] = centred[v] * own.factor[v] + own.shift[v];
        dz[v] = widen(dy.at[v]);
    }
    times_slope(dz, z, kind);
}

// Per block of `stretch` rows and channel, the sums of dz and of dz * x_hat: partial (blocks, 2, channels).
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 2) norm_backward_sums(
    const T* __restrict__ dy, const T* __restrict__ x, const WideOf<T>* __restrict__ scale,
    const WideOf<T>* __restrict__ shift, const WideOf<T>* __restrict__ mean,
    const WideOf<T>* __restrict__ variance, WideOf<T>* __restrict__ partial, int rows,
    int channels, int width, int stretch, WideOf<T> epsilon, int kind) {
    typedef WideOf<T> A;
    constexpr int BATCH = V == 1 ? 4 : 3;
    __shared__ __align__(16) A shared[3][MAX_WIDTH<V> * V];
    __shared__ A columns[2 * V][PITCH<V>];
    const Columns<V> at(channels, width);
    const Affine<A, V> own = affine_of<A, V>(shared, scale, shift, mean, variance, epsilon, at);
    const long long first = (long long)blockIdx.x * stretch, last = min(first + stretch, (long long)rows);
    A sums[2 * V] = {};
    if (at.active)
        for (long long row = first + at.lane; row < last; row += BATCH * at.lanes) {
            Vector<T, V> values[BATCH], gradients[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (row + i * at.lanes < last) {
                    values[i] = load<V>(x + (row + i * at.lanes) * channels + at.channel);
                    gradients[i] = load<V>(dy + (row + i * at.lanes) * channels + at.channel);
                }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                if (row + i * at.lanes >= last) break;
                A dz[V], centred[V];
                pre_activation_gradient(dz, centred, gradients[i], values[i], own, kind);
#pragma unroll
                for (int v = 0; v < V; v++) {
                    sums[v] += dz[v];
                    sums[V + v] += dz[v] * centred[v];
                }
            }
        }
    put_column<V>(columns, sums);
    add_lanes<2 * V, V>(columns, at);
    for (int i = threadIdx.x; i < at.count; i += THREADS) {
        A* out = partial + (long long)(2 * blockIdx.x) * channels + at.first + i;
        out[0] = columns[i % V][i / V];
        out[channels] = columns[V + i % V][i / V] / (A)sqrt(variance[at.first + i] + epsilon);
    }
}

// dx = factor * (dz - mean of dz - x_hat * mean of dz * x_hat), the means over all rows: sums / rows.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 2) norm_backward_apply(
    const T* __restrict__ dy, const T* __restrict__ x, const WideOf<T>* __restrict__ scale,
    const WideOf<T>* __restrict__ shift, const WideOf<T>* __restrict__ mean,
    const WideOf<T>* __restrict__ variance, const WideOf<T>* __restrict__ sum_dz,
    const WideOf<T>* __restrict__ sum_dz_x_hat, T* __restrict__ dx, int rows, int channels, int width,
    WideOf<T> epsilon, int kind) {
    typedef WideOf<T> A;
    constexpr int BATCH = V == 1 ? 4 : 3;
    __shared__ __align__(16) A shared[3][MAX_WIDTH<V> * V], offsets[2][MAX_WIDTH<V> * V];
    const Columns<V> at(channels, width);
    for (int i = threadIdx.x; i < at.count; i += THREADS) {
        offsets[0][i] = sum_dz[at.first + i] / rows;
        offsets[1][i] = sum_dz_x_hat[at.first + i] / rows / (A)sqrt(variance[at.first + i] + epsilon);
    }
    const Affine<A, V> own = affine_of<A, V>(shared, scale, shift, mean, variance, epsilon, at);
    if (!at.active) return;
    A offset[V], slope[V];
    get_own<V>(offset, offsets[0] + at.own);
    get_own<V>(slope, offsets[1] + at.own);
    const long long step = at.row_step();
    for (long long row = at.first_row(); row < rows; row += BATCH * step) {
        Vector<T, V> values[BATCH], gradients[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (row + i * step < rows) {
                values[i] = load<V>(x + (row + i * step) * channels + at.channel);
                gradients[i] = load<V>(dy + (row + i * step) * channels + at.channel);
            }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (row + i * step >= rows) break;
            A dz[V], centred[V];
            pre_activation_gradient(dz, centred, gradients[i], values[i], own, kind);
#pragma unroll
            for (int v = 0; v < V; v++)
                values[i].at[v] = narrow<T>(own.factor[v] * (dz[v] - offset[v] - centred[v] * slope[v]));
            store(dx + (row + i * step) * channels + at.channel, values[i]);
        }
    }
}

// Per block of `stretch` rows and channel, the sum of x: partial (blocks, channels).
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) channel_sums(
    const T* __restrict__ x, WideOf<T>* __restrict__ partial, int rows, int channels, int width,
    int stretch) {
    typedef WideOf<T> A;
    constexpr int BATCH = V == 1 ? 8 : 4;
    __shared__ A columns[V][PITCH<V>];
    const Columns<V> at(channels, width);
    const long long first = (long long)blockIdx.x * stretch, last = min(first + stretch, (long long)rows);
    A sums[V] = {};
    if (at.active)
        for (long long row = first + at.lane; row < last; row += BATCH * at.lanes) {
            Vector<T, V> values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (row + i * at.lanes < last) values[i] = load<V>(x + (row + i * at.lanes) * channels + at.channel);
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (row + i * at.lanes < last)
#pragma unroll
                    for (int v = 0; v < V; v++) sums[v] += widen(values[i].at[v]);
        }
    put_column<V>(columns, sums);
    add_lanes<V, V>(columns, at);
    for (int i = threadIdx.x; i < at.count; i += THREADS)
        partial[(long long)blockIdx.x * channels + at.first + i] = columns[i % V][i / V];
}
