"""Mutants of the kernels of batch norm, pooling, elementwise operations, and what they share."""


from cnn.backends.base import Window
from tests.cnn.backends.gpu import test_elementwise, test_norm, test_pooling
from tests.cnn.backends.gpu.mutants.checks import costs, run
from tests.cnn.backends.gpu.mutants.mutant import Mutant

RACE, BOUNDS, UNWRITTEN = "race in shared memory", "out of bounds", "never written"

PASSES = run(test_norm.test_passes_agree_with_the_reference, "float32", (3, 5, 7, 3), "relu")
WIDE_PASSES = run(test_norm.test_passes_agree_with_the_reference, "float32", (2, 5, 3, 16), "relu")
WIDE_PASSES_SILU = run(test_norm.test_passes_agree_with_the_reference, "float32", (2, 3, 2, 24), "silu")
SUMS = run(test_norm.test_channel_sums, "float32", (2, 7, 5, 24))
MANY_SUMS = run(test_norm.test_channel_sums, "bf16", (9000, 8))
MERGE = run(test_norm.test_merging_the_tiles_of_a_convolution)
WHOLE_LINES = costs(run(test_norm.test_passes_agree_with_the_reference, "float32", (2, 8, 6, 64), "relu"))

WHOLE_VECTORS = run(
    test_pooling.test_windows_agree_with_the_reference, "float32", (2, 6, 8, 64), Window((2, 2), (2, 2))
)

NORM = (
    Mutant("a stretch goes on past the last row", "norm.cu",
           "min(first + stretch, (long long)rows);\n    A sums[2 * V] = {};\n    if (at.active) {",
           "first + stretch;\n    A sums[2 * V] = {};\n    if (at.active) {", PASSES, BOUNDS),
    Mutant("threads without channels read some", "norm.cu", "    if (at.active) {\n        const T* base",
           "    {\n        const T* base",
           run(test_norm.test_passes_agree_with_the_reference, "bf16", (2, 2, 1, 1040), "relu"), BOUNDS),
    Mutant("distances from zero", "norm.cu", "- widen(origin.at[v])", "",
           run(test_norm.test_variance_of_a_small_deviation_from_a_large_mean, "float32")),
    Mutant("lanes are added without a barrier", "common.cuh", "int half = (rest + 1) / 2;\n        __syncthreads();",
           "int half = (rest + 1) / 2;", SUMS, f"{RACE}|{UNWRITTEN}"),
    Mutant("sums are used before they are there", "common.cuh", "        rest = half;\n    }\n    __syncthreads();",
           "        rest = half;\n    }", SUMS, RACE),
    Mutant("lanes past the last are added", "common.cuh", "if (at.lane + half < rest)", "if (at.lane < half)", SUMS,
           f"{RACE}|{UNWRITTEN}|wrong"),
    Mutant("means are merged without their distance", "norm.cu", "distance * distance * (count * share)", "0", MERGE),
    Mutant("all tiles have as many rows", "norm.cu", "min(stretch, rows - b * stretch)", "stretch", MERGE),
    Mutant("lanes are merged without a barrier", "norm.cu",
           "half /= 2) {\n        __syncthreads();\n        if (lane < half) {\n            own.merge",
           "half /= 2) {\n        if (lane < half) {\n            own.merge", MERGE, f"{RACE}|{UNWRITTEN}"),
    Mutant("partial sums are merged without a barrier", "norm.cu",
           "half /= 2) {\n        __syncthreads();\n        if (lane < half)\n#pragma unroll",
           "half /= 2) {\n        if (lane < half)\n#pragma unroll", MANY_SUMS, f"{RACE}|{UNWRITTEN}"),
    Mutant("some partial sums are left out", "norm.cu", "block < blocks; block += MERGE_LANES)",
           "block < blocks; block += 2 * MERGE_LANES)",
           run(test_norm.test_sums_of_more_parts_than_a_merge_has_lanes)),
    Mutant("biased running variance", "norm.cu", "own.squares / max(rows - 1, 1)", "own.squares / rows", PASSES),
    Mutant("running statistics become NaN", "norm.cu", "is_finite(own.mean) && is_finite(unbiased)", "true",
           run(test_norm.test_running_statistics_of_channels_that_are_not_finite_stay)),
    Mutant("no epsilon", "norm.cu", "scale[at.first + i] / (A)sqrt(variance[at.first + i] + epsilon)",
           "scale[at.first + i] / (A)sqrt(variance[at.first + i])",
           run(test_norm.test_passes_agree_with_the_reference, "float64", (2, 3, 2, 24), "")),
    Mutant("factors are read before they are there", "norm.cu",
           "        shared[2][i] = shift[at.first + i];\n    }\n    __syncthreads();",
           "        shared[2][i] = shift[at.first + i];\n    }", PASSES, f"{RACE}|{UNWRITTEN}"),
    Mutant("threads without channels skip a barrier", "norm.cu",
           "constexpr int BATCH = 5;\n    __shared__ __align__(16) A shared[3][MAX_WIDTH<V> * V];\n"
           "    const Columns<V> at(channels, width);\n",
           "constexpr int BATCH = 5;\n    __shared__ __align__(16) A shared[3][MAX_WIDTH<V> * V];\n"
           "    const Columns<V> at(channels, width);\n    if (!at.active) return;\n", PASSES, "without the barrier"),
    Mutant("gradient without its projection", "norm.cu", "- centred[v] * slope[v]", "", PASSES),
    Mutant("gradient without its mean", "norm.cu", "dz[v] - offset[v] -", "dz[v] -", PASSES),
    Mutant("the second sum is the first", "norm.cu", "second[channel] = totals[K - 1][0][c]",
           "second[channel] = totals[0][0][c]", PASSES),
    Mutant("no derivative of the activation", "norm.cu", "    times_slope(dz, z, kind);\n", "", PASSES),
    Mutant("derivatives at the wrong place", "common.cuh",
           "d[v] *= activation_slope(x[v], activated(x[v], kind), kind)",
           "d[v] *= activation_slope(x[v], x[v], kind == SILU ? SIGMOID : kind)", WIDE_PASSES_SILU),
    Mutant("ReLU makes NaN zero", "common.cuh", "x > 0 || x != x ? x", "x > 0 ? x",
           run(test_elementwise.test_activations_propagate_nan, "relu")),
    Mutant("columns meet in a bank", "common.cuh", "THREADS + 32 / V", "THREADS", WHOLE_LINES),
    Mutant("neighbouring threads load other rows", "common.cuh",
           "lane = threadIdx.x / width;\n        first = blockIdx.y * width * V;\n"
           "        count = min(width * V, channels - first);\n"
           "        own = (threadIdx.x - lane * width) * V;",
           "lane = threadIdx.x % lanes;\n        first = blockIdx.y * width * V;\n"
           "        count = min(width * V, channels - first);\n        own = threadIdx.x / lanes * V;",
           costs(WHOLE_VECTORS)),
)  # fmt: skip

OVERLAPPING = test_pooling.WINDOWS[1]
WINDOWS = run(test_pooling.test_windows_agree_with_the_reference, "float32", (2, 7, 5, 3), OVERLAPPING)
TWO_BY_TWO = run(test_pooling.test_windows_agree_with_the_reference, "float32", (2, 7, 5, 3), Window((2, 2), (2, 2)))
GLOBAL = run(test_pooling.test_global_pools_agree_with_the_reference, "float32", (2, 7, 5, 3))
SPECIAL = run(test_pooling.test_max_pools_of_nan_and_infinity, "float32")

POOLING = (
    Mutant("NaN is not the largest", "pooling.cu", "other > value[v] || other != other", "other > value[v]", SPECIAL),
    Mutant("the last of equals wins", "pooling.cu", "if (other > value[v] ||", "if (other >= value[v] ||", WINDOWS),
    Mutant("the first window is one too early", "pooling.cu", "(position - size) / stride + 1",
           "(position - size) / stride", WINDOWS),
    Mutant("windows past the last", "pooling.cu", "min(position / stride + 1, count)", "position / stride + 1",
           run(test_pooling.test_windows_agree_with_the_reference, "float32", (2, 7, 5, 3), test_pooling.WINDOWS[2]),
           f"{BOUNDS}|wrong"),
    Mutant("max pools reach below the image", "pooling.cu",
           "i + a < height; a++)\n            for (int b = max(0, -j); b < size_w && j + b < in_w; b++)\n"
           "                largest",
           "i + a <= height; a++)\n            for (int b = max(0, -j); b < size_w && j + b < in_w; b++)\n"
           "                largest", WINDOWS, f"{BOUNDS}|wrong"),
    Mutant("parts of windows outside are written", "pooling.cu", "            if (i < height && j < in_w)\n", "",
           TWO_BY_TWO, f"{BOUNDS}|race in global"),
    Mutant("pixels that no window covers keep no zero", "pooling.cu", "if (window.i < out_h && window.j < out_w)",
           "if (true)", TWO_BY_TWO, f"{BOUNDS}|wrong"),
    Mutant("the mean of a line", "pooling.cu", "const A area = (A)size_h * size_w;\n"
           "    for (long long row = at.first_row(); row < rows; row += at.row_step()) {\n"
           "        const Pixel out", "const A area = (A)size_h;\n"
           "    for (long long row = at.first_row(); row < rows; row += at.row_step()) {\n"
           "        const Pixel out", WINDOWS),
    Mutant("lanes without a pixel take part", "pooling.cu", "int rest = min(at.lanes, pixels)", "int rest = at.lanes",
           run(test_pooling.test_global_pools_agree_with_the_reference, "float32", (3, 1, 1, 5))),
    Mutant("global maxima without a barrier", "pooling.cu", "int half = (rest + 1) / 2;\n        __syncthreads();",
           "int half = (rest + 1) / 2;", GLOBAL, f"{RACE}|{UNWRITTEN}"),
    Mutant("of equal maxima the last", "pooling.cu", "(other == value && other_at < at)",
           "(other == value && other_at > at)", GLOBAL),
    Mutant("of several NaN the last", "pooling.cu", "(!nan || other_at < at)", "(!nan || other_at > at)", SPECIAL),
    Mutant("gradients are read before they are there", "pooling.cu",
           "places[i] = winners ? winners[from] : -1;\n    }\n    __syncthreads();",
           "places[i] = winners ? winners[from] : -1;\n    }", GLOBAL, f"{RACE}|{UNWRITTEN}"),
    Mutant("chunks of pixels end late", "pooling.cu", "min((int)(blockIdx.z + 1) * chunk, pixels)",
           "(int)(blockIdx.z + 1) * chunk",
           run(test_pooling.test_global_pools_agree_with_the_reference, "float64", (1, 33, 21, 8)),
           f"{BOUNDS}|race in global"),
)  # fmt: skip

FLAT = run(test_elementwise.test_activations_and_sums_agree_with_the_reference, "float32", "relu")
GELU = run(test_elementwise.test_activations_and_sums_agree_with_the_reference, "float32", "gelu")
DROPOUT = run(test_elementwise.test_dropout_draws_as_on_the_host, "float32", (2, 6, 8, 16), (2**40 + 5, 17))
SOFTMAX = run(test_elementwise.test_softmax_agrees_with_the_reference, "float32", (9, 10))

ELEMENTWISE = (
    Mutant("the last numbers are left out", "elementwise.cu", "if (last < size)", "if (false)", FLAT),
    Mutant("vectors past the last are read", "elementwise.cu",
           "if (i + k * step < vectors) {\n                left[k]", "{\n                left[k]", FLAT, BOUNDS),
    Mutant("vectors past the last are written", "elementwise.cu",
           "if (i + k * step < vectors) {\n                Vector<Out, V> out;",
           "{\n                Vector<Out, V> out;", FLAT, BOUNDS),
    Mutant("blocks write the same numbers", "elementwise.cu",
           "thread = (long long)blockIdx.x * THREADS + threadIdx.x", "thread = threadIdx.x",
           run(test_elementwise.test_conversions), "race in global|wrong"),
    Mutant("GELU's derivative lacks a term", "common.cuh", "(A)(3 * 0.044715)", "(A)0.044715", GELU),
    Mutant("draws equal to the rate are dropped", "elementwise.cu", "draws[column + v] >= rate",
           "draws[column + v] > rate", run(test_elementwise.test_dropout_compares_equal_draws)),
    Mutant("draws of the column before", "common.cuh", "(column + 1) * GOLDEN_GAMMA",
           "column * GOLDEN_GAMMA", DROPOUT),
    Mutant("draws of the row's place", "elementwise.cu", "numbers ? numbers[row] : row", "row", DROPOUT),
    Mutant("softmax overflows", "elementwise.cu", "sum += exp(x[c] - largest)", "sum += exp(x[c])", SOFTMAX),
    Mutant("lanes without a class leave a warp", "elementwise.cu",
           "#pragma unroll\n    for (int distance = 16; distance > 0; distance /= 2)\n        largest",
           "    if (lane >= columns) return;\n    for (int distance = 16; distance > 0; distance /= 2)\n"
           "        largest", SOFTMAX, "wrong|not together"),
    Mutant("softmax's gradient without the mean", "elementwise.cu", "y[c] * (dy[c] - sum)", "y[c] * dy[c]", SOFTMAX),
    Mutant("ties are not rounded to even", "common.cuh", "bits + 0x7fff + (bits >> 16 & 1)", "bits + 0x8000",
           run(test_elementwise.test_conversions)),
    Mutant("NaN becomes infinity", "common.cuh", "(bits & 0x7fffffff) > 0x7f800000 ?", "false ?",
           run(test_elementwise.test_conversions)),
)  # fmt: skip
