"""Mutants of the convolution's kernels."""

import numpy as np

from cnn.backends.base import Window
from cnn.backends.gpu.convolution import TILES
from tests.cnn.backends.gpu import test_convolution as tests
from tests.cnn.backends.gpu.mutants.checks import costs, one_pass, run
from tests.cnn.backends.gpu.mutants.mutant import Mutant
from tests.cnn.backends.gpu.test_convolution import ALIGNED, NARROW, SAME, Case

RACE, BOUNDS = "race in shared memory", "out of bounds"
TALL = Case((2, 13, 11, 16), 8, Window((3, 3), (2, 1), 1, 1, 1, 1))
STRIDED, PADDED = ALIGNED[1], run(tests.test_input_with_padded_channels, "bf16", 24)
SMALL, SPLIT = Case((1, 4, 5, 16), 8, SAME), Case((1, 17, 17, 8), 8, SAME)
LINES = Case((1, 12, 12, 64), 128, SAME)  # whole tiles and slices

CONVOLUTION = (
    # Barriers and copies in the background
    Mutant("slices not awaited", "convolution.cu", "copies_wait<STAGES - 2>();", "copies_wait<STAGES - 1>();",
           one_pass("y", SMALL), RACE),
    Mutant("no barrier before a slice is multiplied", "convolution.cu",
           "__syncthreads();  // this step's slices are there", "// this step's slices are there",
           one_pass("y", SMALL), RACE),
    Mutant("no group for the first slices", "convolution.cu", "        copies_commit();\n    }\n    for",
           "    }\n    for", one_pass("y", SMALL), RACE),
    Mutant("no group for the other slices", "convolution.cu", "            copies_commit();\n        });",
           "        });", one_pass("dx", SMALL), RACE),
    Mutant("no barrier after the corners", "convolution.cu",
           "corners.fill(domain, row0, rows);\n        __syncthreads();", "corners.fill(domain, row0, rows);",
           one_pass("y", SMALL), f"{RACE}|never written"),
    Mutant("slices overwrite corners", "convolution.cu", "if constexpr (PASS != WEIGHT) __syncthreads();",
           "if (false) __syncthreads();", one_pass("y", SMALL), RACE),
    Mutant("staged output overwrites slices", "convolution.cu", "    copies_wait<0>();\n    __syncthreads();\n",
           "    copies_wait<0>();\n", one_pass("y", SMALL), RACE),
    Mutant("no barrier between the parts of a tile", "convolution.cu", "if (part) __syncthreads();", "",
           one_pass("y", LINES, "tf32", TILES[0]), RACE),
    Mutant("no barrier before the output is copied", "convolution.cu",
           "col0, cols);\n        __syncthreads();\n        if (PASS", "col0, cols);\n        if (PASS",
           one_pass("y", SMALL), f"{RACE}|host memory, or none"),
    Mutant("no barrier after the activation", "convolution.cu", "stage.activate(kind);\n            __syncthreads();",
           "stage.activate(kind);", one_pass("y", SMALL, activation="silu"), RACE),
    Mutant("too few stages of shared memory", "convolution.cu", "? 3 : 4, SLICES", "? 3 : 5, SLICES",
           one_pass("y", SMALL), "shared memory out of bounds"),
    # Edges
    Mutant("rows past the last are stored", "convolution.cu", "row < rows ? to : -1", "to", one_pass("y", SMALL),
           BOUNDS),
    Mutant("columns past the last are stored", "output.cuh", "if (to < 0 || col >= all_cols) continue;",
           "if (to < 0) continue;", one_pass("y", SMALL), f"{BOUNDS}|race in global"),
    Mutant("windows reach above the image", "operands.cuh", "((unsigned)y < (unsigned)down.size)", "(y < down.size)",
           one_pass("y", SMALL), f"{BOUNDS}|host memory, or none"),
    Mutant("windows reach beside the image", "operands.cuh", "((unsigned)x < (unsigned)across.size)",
           "(x < across.size)", one_pass("d_weight", SMALL), BOUNDS),
    Mutant("taps past the last are read", "operands.cuh", "tap.a < domain.down.taps ? tap.a : 1 << 29", "tap.a",
           run(tests.test_nan_and_infinity_are_propagated, "bf16", np.nan)),
    Mutant("columns past the last are read", "operands.cuh", "left = col < cols && (!padding || k % VEC<T> < real)",
           "left = (!padding || k % VEC<T> < real)", one_pass("y", SMALL), BOUNDS),
    Mutant("filters past the last are read", "operands.cuh", "tap.a < domain.down.taps ? left : 0", "left",
           one_pass("dx", SMALL), BOUNDS),
    Mutant("pixels past the last are summed", "convolution.cu", "min(first + stretch, pixels)", "first + stretch",
           one_pass("d_weight", SPLIT), BOUNDS),
    # Indices
    Mutant("a line of pixels ends one late", "operands.cuh", "if (x >= x_end)", "if (x > x_end)",
           one_pass("d_weight", ALIGNED[0])),
    Mutant("images follow each other without padding", "operands.cuh",
           "domain.offset(1, -down.pixels * down.step, 0)", "domain.offset(1, -down.size, 0)",
           one_pass("d_weight", TALL), BOUNDS),
    Mutant("the sum over pixels does not end", "operands.cuh",
           "        left -= DEPTH<T>;\n    }\n};\n\n// Right operand of FORWARD",
           "    }\n};\n\n// Right operand of FORWARD", one_pass("d_weight", SPLIT), BOUNDS),
    Mutant("phases of strided pixels coincide", "convolution.cu", "domain.down.first + pixel.i * stride_down",
           "pixel.i * stride_down", one_pass("dx", STRIDED), "race in global|wrong"),
    Mutant("a phase has too few taps", "operands.cuh", "taps = (window - phase + stride - 1) / stride;",
           "taps = window / stride;", one_pass("dx", STRIDED)),
    Mutant("taps are not reversed", "operands.cuh", "domain.across.last_tap - tap.b * domain.across.stride",
           "tap.b * domain.across.stride", one_pass("dx", SMALL)),
    Mutant("padded channels have weights", "operands.cuh", "k / VEC<T> * real + k % VEC<T>", "k", PADDED, BOUNDS),
    Mutant("padded channels have gradients", "convolution.cu", "tap.channel < real ?", "true ?", PADDED,
           "race in global|wrong"),
    Mutant("carries skip a tap", "operands.cuh", "if (++b == taps_across)", "if (++b > taps_across)",
           one_pass("y", SMALL)),
    # Products and output
    Mutant("fragments are not transposed", "product.cuh",
           "else if constexpr (MATH == BF16) ldmatrix4_transposed(two, piece);",
           "else if constexpr (MATH == BF16) ldmatrix4(two, piece);", one_pass("y", SMALL)),
    Mutant("pieces of fragments are exchanged", "product.cuh", "b[j + e / 2][e % 2]", "b[j + e % 2][e / 2]",
           one_pass("y", SMALL)),
    Mutant("TF32 is cut off, not rounded", "product.cuh", "__uint_as_float(x) * (1 + 1 / 3072.0f)",
           "__uint_as_float(x)", one_pass("y", ALIGNED[0], "tf32")),
    Mutant("sums of plain products are exchanged", "product.cuh", "a[2 * i + e / 2] * b", "a[2 * i + e % 2] * b",
           one_pass("y", NARROW[2], "float32")),
    Mutant("the bias of a neighbour", "output.cuh", "? bias[col + 1] :", "? bias[col] :", one_pass("y", SMALL)),
    Mutant("NaN becomes zero", "output.cuh", "a < floor ? floor : a", "a > floor ? a : floor",
           run(tests.test_nan_and_infinity_are_propagated, "bf16", np.nan)),
    Mutant("bfloat16 is cut off, not rounded", "ptx.cuh", "narrow<bf16>(low) | (unsigned)narrow<bf16>(high) << 16",
           "__float_as_uint(low) >> 16 | __float_as_uint(high) >> 16 << 16", one_pass("y", ALIGNED[0])),
    # Statistics and split sums
    Mutant("statistics of rows past the last", "convolution.cu", "min(ROWS, rows - row0), col0", "ROWS, col0",
           run(tests.test_statistics_are_of_the_stored_output, "float32", TILES[-1])),
    Mutant("statistics of two tiles in one place", "convolution.cu", "(long long)row_tile * 2 * cols",
           "(long long)row_tile * cols", run(tests.test_statistics_are_of_the_stored_output, "float32", TILES[-1]),
           "race in global|wrong"),
    Mutant("squares without the mean", "output.cuh", "widen(sums[r * pitch + q]) - mean",
           "widen(sums[r * pitch + q])", run(tests.test_statistics_are_of_the_stored_output, "float32", TILES[-1])),
    Mutant("portions in one place", "convolution.cu", "out += (long long)blockIdx.z *", "out += 0 *",
           one_pass("d_weight", SPLIT), "race in global"),
    Mutant("more portions are added than there are", "convolution.cu", "min((warp + 1) * each, splits)",
           "(warp + 1) * each", one_pass("d_weight", SPLIT), BOUNDS),
    Mutant("portions are added before they are there", "convolution.cu",
           "sums[warp][lane] = sum;\n    __syncthreads();", "sums[warp][lane] = sum;", one_pass("d_weight", SPLIT),
           f"{RACE}|never written"),
    # Memory
    Mutant("slices without permutation", "product.cuh", "(element / VEC<T> ^ (i >> 1 & 3))", "(element / VEC<T>)",
           costs(one_pass("y", LINES, tile=TILES[2]))),
    Mutant("slices without space between lines", "product.cuh", "ALONG_K ? line : line + 8", "line",
           costs(one_pass("d_weight", LINES, tile=TILES[2]))),
    Mutant("staged output without space between rows", "output.cuh", "pitch = cols + 8", "pitch = cols",
           costs(one_pass("y", LINES, tile=TILES[2]))),
    Mutant("warps write columns", "output.cuh", "row = i / (cols / V), q = i % (cols / V) * V, col",
           "row = i % ROWS, q = i / ROWS * V, col", costs(one_pass("y", LINES, tile=TILES[2]))),
)  # fmt: skip
