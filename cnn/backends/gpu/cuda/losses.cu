// Softmax and cross-entropy in one pass, with the gradient and the number of correct rows; and that number alone.
// G neighbouring lanes share a row. One block goes through few rows; of many rows, each block writes its sums, and
// `loss_merge` adds them. All sums are in a fixed order.

constexpr int LOSS_THREADS = 512, MAX_GROUPS = LOSS_THREADS / 8;  // rows of a block at a time

// The largest value and its place: of equal values the first, and NaN is larger than any number, as in NumPy.
template <class T> struct Peak {
    T value;
    int at;  // below 0: no value yet
    __device__ __forceinline__ void offer(T other, int place) {
        if (place < 0) return;
        const bool is_nan = value != value, other_is_nan = other != other;
        const bool first = place < at && !(other < value);  // of equals
        if (at < 0 || (is_nan == other_is_nan ? other > value || first : other_is_nan)) value = other, at = place;
    }
};

template <int G, class T> __device__ __forceinline__ T group_sum(T x) {
#pragma unroll
    for (int half = G / 2; half > 0; half /= 2) x += __shfl_xor_sync(0xffffffff, x, half);
    return x;
}

// The peak of a row, in all lanes of its group.
template <int G, class T> __device__ __forceinline__ Peak<T> row_peak(const T* row, int classes) {
    Peak<T> peak = {(T)0, -1};
    for (int k = threadIdx.x % G; k < classes; k += G) peak.offer(row[k], k);
#pragma unroll
    for (int half = G / 2; half > 0; half /= 2) {
        const T value = __shfl_xor_sync(0xffffffff, peak.value, half);
        peak.offer(value, __shfl_xor_sync(0xffffffff, peak.at, half));
    }
    return peak;
}

// Sums over the groups of a block, pairwise; valid in thread 0. Every lane gives its group's values.
struct Totals {
    double loss;
    long long correct;
};
template <int G> __device__ __forceinline__ Totals block_totals(double loss, long long correct) {
    __shared__ double losses[MAX_GROUPS];
    __shared__ long long counts[MAX_GROUPS];
    const int group = threadIdx.x / G;
    const bool leads = threadIdx.x % G == 0;
    if (leads) losses[group] = loss, counts[group] = correct;
    for (int half = blockDim.x / G / 2; half > 0; half /= 2) {
        __syncthreads();
        if (leads && group < half) {
            loss += losses[group + half], correct += counts[group + half];
            losses[group] = loss, counts[group] = correct;
        }
    }
    return {loss, correct};
}

// Targets are class indices `labels` (rows,), or soft labels `soft` (rows, classes); the other is null.
// `class_weights` may be null. With several blocks, each writes its sums to `losses` and `counts`.
template <class T, int G>
__global__ void __launch_bounds__(LOSS_THREADS, 1) softmax_cross_entropy(
    const T* __restrict__ logits, const long long* __restrict__ labels, const T* __restrict__ soft,
    const T* __restrict__ class_weights, T* __restrict__ gradient, T* __restrict__ loss,
    long long* __restrict__ correct, double* __restrict__ losses, long long* __restrict__ counts, int rows, int classes,
    T smoothing, T denominator) {
    const int lane = threadIdx.x % G, groups = blockDim.x / G;
    const T uniform = smoothing / classes, sharp = 1 - smoothing;
    double loss_sum = 0;
    long long hits = 0;
    for (int first = blockIdx.x * groups; first < rows; first += gridDim.x * groups) {
        const bool active = first + (int)threadIdx.x / G < rows;  // other groups repeat the last row: lanes shuffle
        const long long row = active ? first + (int)threadIdx.x / G : rows - 1;
        const T *z = logits + row * classes, *mix = soft ? soft + row * classes : nullptr;
        const Peak<T> peak = row_peak<G>(z, classes);
        const int label = mix ? row_peak<G>(mix, classes).at : (int)labels[row];
        T total = 0, target_sum = 0, target_logits = 0, weight = 0;
        for (int k = lane; k < classes; k += G) {
            const T own = mix ? mix[k] : k == label ? (T)1 : (T)0, target = sharp * own + uniform;
            const T distance = z[k] - peak.value;
            total += exp(distance);
            target_sum += target;
            target_logits += target * distance;
            if (class_weights) weight += own * class_weights[k];
        }
        total = group_sum<G>(total), target_sum = group_sum<G>(target_sum);
        target_logits = group_sum<G>(target_logits), weight = group_sum<G>(weight);
        const T factor = (class_weights ? weight : (T)1) / denominator;
        if (!active) continue;
        loss_sum -= (double)(factor * (target_logits - log(total) * target_sum));
        hits += peak.at == label;
        const T scale = factor / total;
        for (int k = lane; k < classes; k += G) {
            const T own = mix ? mix[k] : k == label ? (T)1 : (T)0;
            gradient[row * classes + k] = scale * exp(z[k] - peak.value) - factor * (sharp * own + uniform);
        }
    }
    const Totals totals = block_totals<G>(loss_sum, hits);
    if (threadIdx.x > 0) return;
    if (gridDim.x == 1) *loss = (T)totals.loss, *correct = totals.correct;
    else losses[blockIdx.x] = totals.loss, counts[blockIdx.x] = totals.correct;
}

// One block: the sums of all blocks of `softmax_cross_entropy`.
template <class T>
__global__ void __launch_bounds__(LOSS_THREADS, 1) loss_merge(
    const double* __restrict__ losses, const long long* __restrict__ counts, int blocks, T* __restrict__ loss,
    long long* __restrict__ correct) {
    double loss_sum = 0;
    long long hits = 0;
    for (int i = threadIdx.x / 8; i < blocks; i += MAX_GROUPS) loss_sum += losses[i], hits += counts[i];
    const Totals totals = block_totals<8>(loss_sum, hits);
    if (threadIdx.x == 0) *loss = (T)totals.loss, *correct = totals.correct;
}

// One block: the number of rows whose largest output is that of the class, or of the class with most weight.
template <class T, int G>
__global__ void __launch_bounds__(LOSS_THREADS, 1) count_correct(
    const T* __restrict__ outputs, const long long* __restrict__ labels, const T* __restrict__ soft,
    long long* __restrict__ correct, int rows, int classes) {
    const int groups = blockDim.x / G;
    long long hits = 0;
    for (int first = 0; first < rows; first += groups) {
        const bool active = first + (int)threadIdx.x / G < rows;
        const long long row = active ? first + (int)threadIdx.x / G : rows - 1;
        const int found = row_peak<G>(outputs + row * classes, classes).at;
        const int label = soft ? row_peak<G>(soft + row * classes, classes).at : (int)labels[row];
        if (active) hits += found == label;
    }
    const Totals totals = block_totals<G>(0.0, hits);
    if (threadIdx.x == 0) *correct = totals.correct;
}
