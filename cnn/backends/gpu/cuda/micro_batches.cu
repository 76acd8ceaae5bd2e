// Sums over the micro-batches of a step: gradients, losses and counts are added, batch norm's statistics merged by the
// formula of Chan, Golub and LeVeque (1979). Each element has one thread, so that the order of threads has no effect.

// Merge the sums of `second_rows` images into those of `first_rows` before them; `share` is second_rows / (first_rows +
// second_rows), and the same for all batch norms. `places` (2, channels) has the places of means and variances.
template <class T, int V>
__global__ void __launch_bounds__(THREADS) merge_sums(
    T* __restrict__ gradient, const T* __restrict__ other_gradient, long long size, T* __restrict__ statistics,
    const T* __restrict__ other_statistics, const int* __restrict__ places, int channels, T share,
    const T* __restrict__ loss, const T* __restrict__ other_loss, T* __restrict__ loss_sum,
    const long long* __restrict__ correct, const long long* __restrict__ other_correct,
    long long* __restrict__ correct_sum) {
    const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x, threads = gridDim.x * (long long)THREADS;
    const long long whole = size / V * V;
    for (long long i = thread * V; i < whole; i += threads * V) {
        Vector<T, V> sum = load<V>(gradient + i);
        const Vector<T, V> other = load<V>(other_gradient + i);
#pragma unroll
        for (int v = 0; v < V; v++) sum.at[v] += other.at[v];
        store(gradient + i, sum);
    }
    if (thread < size - whole) gradient[whole + thread] += other_gradient[whole + thread];
    for (long long i = thread; i < channels; i += threads) {
        const int mean = places[i], variance = places[channels + i];
        const T distance = other_statistics[mean] - statistics[mean];
        const T within = (1 - share) * statistics[variance] + share * other_statistics[variance];
        statistics[variance] = within + share * (1 - share) * (distance * distance);
        statistics[mean] += share * distance;
    }
    if (thread == 0) *loss_sum = *loss + *other_loss, *correct_sum = *correct + *other_correct;
}

// Move the running statistics in `state` towards the mean and the unbiased variance of a batch of `rows` images, where
// both are finite and the step is: see `OK` in backends/base.py, the first entry of `outcome`.
template <class T>
__global__ void __launch_bounds__(THREADS) move_statistics(
    T* __restrict__ state, const T* __restrict__ statistics, const int* __restrict__ places,
    const T* __restrict__ momentum, const int* __restrict__ pixels, int channels, long long rows,
    const double* __restrict__ outcome) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= channels || outcome[0] == 0) return;
    const int mean_at = places[i], variance_at = places[channels + i];
    const long long count = rows * pixels[i];
    const T mean = statistics[mean_at];
    const T unbiased = statistics[variance_at] * (T)((double)count / (double)max(count - 1, 1LL));
    if (!is_finite(mean) || !is_finite(unbiased)) return;
    state[mean_at] += momentum[i] * (mean - state[mean_at]);
    state[variance_at] += momentum[i] * (unbiased - state[variance_at]);
}
