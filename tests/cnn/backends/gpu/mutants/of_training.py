"""Mutants of the kernels of losses, optimizers and input images."""

import numpy as np

from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from tests.cnn.backends.gpu import test_losses, test_micro_batches, test_optimizers, test_preprocess
from tests.cnn.backends.gpu.mutants.checks import augment_in_type, run
from tests.cnn.backends.gpu.mutants.mutant import Mutant

RACE, BOUNDS, UNWRITTEN = "race in shared memory", "out of bounds", "never written"

LABELS = run(test_losses.test_cross_entropy_matches_the_reference, "labels", np.float32)
WEIGHTED = run(test_losses.test_cross_entropy_matches_the_reference, "weighted soft", np.float32)
COUNTS = run(test_losses.test_count_correct_breaks_ties_as_the_reference, np.float32)
EXTREME = run(test_losses.test_extreme_logits_do_not_overflow_and_nan_is_propagated, 10)

LOSSES = (
    Mutant("block sums without a barrier", "losses.cu", "half /= 2) {\n        __syncthreads();\n        if (leads",
           "half /= 2) {\n        if (leads", LABELS, f"{RACE}|{UNWRITTEN}"),
    Mutant("labels are not smoothed", "losses.cu", "target = sharp * own + uniform;", "target = own;", LABELS),
    Mutant("the last of equals is the peak", "losses.cu", "place < at && !(other < value)",
           "place > at && !(other < value)", COUNTS),
    Mutant("NaN is never the peak", "losses.cu", "other > value || first : other_is_nan)",
           "other > value || first : false)", COUNTS),
    Mutant("exponentials overflow", "losses.cu", "const T distance = z[k] - peak.value;", "const T distance = z[k];",
           EXTREME),
    Mutant("the last row is counted again", "losses.cu", "        if (!active) continue;\n", "", LABELS,
           "race in global|wrong"),
    Mutant("groups without a row leave their warp", "losses.cu", "other groups repeat the last row: lanes shuffle\n",
           "other groups\n        if (!active) continue;\n", LABELS, "not together|never written|wrong"),
    Mutant("classes have no weights", "losses.cu", "class_weights ? weight : (T)1", "(T)1", WEIGHTED),
    Mutant("gradients are not divided", "losses.cu", "const T scale = factor / total;", "const T scale = 1 / total;",
           LABELS),
    Mutant("some blocks' losses are left out", "losses.cu", "i < blocks; i += MAX_GROUPS)",
           "i < blocks; i += 2 * MAX_GROUPS)", LABELS),
    Mutant("blocks go through the same rows", "losses.cu",
           "int first = blockIdx.x * groups; first < rows; first += gridDim.x * groups",
           "int first = 0; first < rows; first += gridDim.x * groups", LABELS, "race in global|wrong"),
)  # fmt: skip

SGD = run(test_optimizers.test_updates_match_the_reference, "nesterov", np.float32)
ADAMW = run(test_optimizers.test_updates_match_the_reference, "adamw", np.float64)
OUTCOME = run(test_optimizers.test_outcome_matches_the_reference, 9001, 1, np.float32)
NOT_FINITE = run(test_optimizers.test_what_is_not_finite_fails_this_step_and_all_after_it, np.nan)


def failed(name: str, line: str) -> Mutant:
    """A step that is carried out although it failed."""
    check = run(test_optimizers.test_a_failed_step_changes_nothing, name)
    old = f"    if (outcome[OK] == 0) return;\n    {line}"
    return Mutant(f"{name} after a failed step", "optimizers.cu", old, f"    {line}", check)


SUMS = run(test_micro_batches.test_sums_match_the_reference, 1023, 1, 300, np.float32)
RUNNING = run(test_micro_batches.test_running_statistics_match_the_reference, 700, 33, np.float32)

MICRO_BATCHES = (
    Mutant("both runs have the same weight", "micro_batches.cu", "(1 - share) * statistics[variance]",
           "share * statistics[variance]", SUMS),
    Mutant("means do not add to the variance", "micro_batches.cu",
           "within + share * (1 - share) * (distance * distance)", "within", SUMS),
    Mutant("the last elements are not added", "micro_batches.cu", "if (thread < size - whole) gradient",
           "if (0) gradient", run(test_micro_batches.test_sums_match_the_reference, 259, 0, 40, np.float32)),
    Mutant("the running variance is biased", "micro_batches.cu", "(double)max(count - 1, 1LL)", "(double)count",
           run(test_micro_batches.test_running_statistics_match_the_reference, 40, 1, np.float64)),
    Mutant("running statistics become infinite", "micro_batches.cu",
           "    if (!is_finite(mean) || !is_finite(unbiased)) return;\n", "", RUNNING),
    Mutant("running statistics move after a failed step", "micro_batches.cu", " || outcome[0] == 0) return;",
           ") return;", RUNNING),
    Mutant("statistics of channels that do not exist", "micro_batches.cu", "if (i >= channels || ", "if (", RUNNING,
           BOUNDS),
)  # fmt: skip

OPTIMIZERS = (
    failed("sgd", "const Sgd"),
    failed("adamw", "const AdamW"),
    failed("average", "for_all<V>(Average"),
    failed("copy", "for_all<V>(Copy"),
    Mutant("SGD does not clip", "optimizers.cu", "T grad = scale * g.at[i];\n            if",
           "T grad = g.at[i];\n            if", SGD),
    Mutant("AdamW does not clip", "optimizers.cu", "const T grad = scale * g.at[i];", "const T grad = g.at[i];",
           ADAMW),
    Mutant("whole vectors decay", "optimizers.cu", "if (first + i < decayed) grad", "if (first < decayed) grad", SGD),
    Mutant("weights decay after their update", "optimizers.cu",
           "            if (first + i < decayed) w.at[i] *= kept;\n"
           "            w.at[i] -= rate * m.at[i] / (sqrt(v.at[i]) * root_scale + epsilon);\n",
           "            w.at[i] -= rate * m.at[i] / (sqrt(v.at[i]) * root_scale + epsilon);\n"
           "            if (first + i < decayed) w.at[i] *= kept;\n", ADAMW),
    Mutant("the last elements are left out", "optimizers.cu", "else if (end + thread - head < size) step",
           "else if (false) step", SGD),
    Mutant("blocks update the same elements", "optimizers.cu", "i < vectors; i += gridDim.x * (long long)THREADS)",
           "i < vectors; i += THREADS)", SGD, "race in global|wrong"),
    Mutant("small gradients are scaled up", "optimizers.cu", "clip > 0 && clip < norm ?", "clip > 0 ?", OUTCOME),
    Mutant("a failed step is forgotten", "optimizers.cu",
           "if (!is_finite(value) || !is_finite(norm)) outcome[OK] = 0;",
           "outcome[OK] = is_finite(value) && is_finite(norm);", NOT_FINITE),
    Mutant("only the loss must be finite", "optimizers.cu", "!is_finite(value) || !is_finite(norm)",
           "!is_finite(value)", NOT_FINITE),
    Mutant("the rest is counted by each block", "optimizers.cu", "if (blockIdx.x == gridDim.x - 1) {", "{", OUTCOME),
    Mutant("squares overflow", "optimizers.cu", "(double)g.at[k] * (double)g.at[k]", "(double)(g.at[k] * g.at[k])",
           NOT_FINITE),
    Mutant("warps' sums without a barrier", "optimizers.cu", "sums[threadIdx.x / 32] = x;\n    __syncthreads();",
           "sums[threadIdx.x / 32] = x;", OUTCOME, f"{RACE}|{UNWRITTEN}"),
    Mutant("a stretch of vectors ends late", "optimizers.cu", "last = min(first + stretch, vectors)",
           "last = first + stretch", OUTCOME, f"{BOUNDS}|wrong"),
)  # fmt: skip

OFF = Augment(flip=False, crop_scale=1.0)
EVERYTHING, NO_MIX = test_preprocess.EVERYTHING, Mix()


def augment(augment: Augment, mix: Mix, size: tuple[int, int] = (5, 7)):
    return run(test_preprocess.test_augment_is_the_host_path, augment, mix, size)


PLANS = run(test_preprocess.test_draws_are_exactly_those_of_the_host)

INPUTS = (
    Mutant("plans by draws of the column before", "common.cuh", "(unsigned long long)(column + 1)",
           "(unsigned long long)column", PLANS),
    Mutant("flips of the other half", "preprocess.cu", "< 0.5f) == (flips_low", "< 0.5f) != (flips_low",
           augment(Augment(flip=True, crop_scale=1.0), NO_MIX)),
    Mutant("holes are off by one", "preprocess.cu", "- length / 2;", "- (length + 1) / 2;",
           augment(Augment(flip=False, crop_scale=1.0, cutout=0.4), NO_MIX, (16, 12))),
    Mutant("no reflection at the border", "preprocess.cu", "x > last ? 2 * last - x : x", "x > last ? last : x",
           run(test_preprocess.test_shifts_and_flips_are_exactly_those_of_the_host)),
    Mutant("the line after the last is read", "preprocess.cu", "(y0 + 1 < height ? width * 3 : 0)", "width * 3",
           augment(OFF, NO_MIX), BOUNDS),
    Mutant("the next of the last image", "preprocess.cu", "partner = n + 1 < count ? n + 1 : 0;", "partner = n + 1;",
           augment(OFF, Mix("mixup")), BOUNDS),
    Mutant("labels are exchanged", "preprocess.cu", "+ (1 - own_label) * (k == partner_label)",
           "+ own_label * (k == partner_label)", augment(OFF, Mix("mixup"))),
    Mutant("CutMix boxes have the wrong side", "preprocess.cu", "double side = sqrt(1.0 - own);",
           "double side = 1.0 - own;", augment(OFF, Mix("cutmix"), (16, 12))),
    Mutant("padding is not zero", "preprocess.cu", "make_float4(v.c[0], v.c[1], v.c[2], 0)",
           "make_float4(v.c[0], v.c[1], v.c[2], 1)", augment_in_type(np.float32)),
    Mutant("bfloat16 padding is not zero", "preprocess.cu", "narrow<bf16>(v.c[2]), 0, 0)",
           "narrow<bf16>(v.c[2]), 1, 0)", augment_in_type(np.uint16)),
    Mutant("positions are read before they are there", "preprocess.cu", "    __syncthreads();\n    const float *xs",
           "    const float *xs", augment(EVERYTHING, Mix("mixup")), f"{RACE}|{UNWRITTEN}"),
    Mutant("saturation of the wrong channels", "preprocess.cu", "(1.0 - saturation) * luma[j]",
           "(1.0 - saturation) * luma[i]", augment(Augment(flip=False, crop_scale=1.0, saturation=0.8), NO_MIX)),
    Mutant("colours are not normalised", "preprocess.cu", "(v.c[c] - mean[c]) * inverse[c]", "(v.c[c] - mean[c])",
           augment(OFF, NO_MIX)),
    Mutant("images by their place in the batch", "preprocess.cu", "(numbers ? numbers[which] : which)", "which",
           run(test_preprocess.test_images_of_the_whole_dataset_give_the_same_bits)),
    Mutant("pixels of the partner's row", "preprocess.cu", "ys[k * entries + row]", "ys[row]",
           augment(EVERYTHING, Mix("mixup"), (16, 12))),
    Mutant("blended with itself", "preprocess.cu", "const T* other = x + (partners[n] * pixels + pixel) * 3;",
           "const T* other = own;", run(test_preprocess.test_resample_and_blend, np.float64, (6, 5), [])),
)  # fmt: skip
