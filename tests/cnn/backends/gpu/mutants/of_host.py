"""Mutants of the host side: grids, arguments, streams, copies, graphs, and what lies between kernels."""

import numpy as np

from cnn.inputs.mixup import Mix
from tests.cnn.backends.gpu import (
    test_convolution,
    test_elementwise,
    test_losses,
    test_memory,
    test_norm,
    test_optimizers,
    test_pooling,
)
from tests.cnn.backends.gpu.measures import test_counts
from tests.cnn.backends.gpu.mutants import test_rules
from tests.cnn.backends.gpu.mutants.checks import in_schedules, one_pass, run
from tests.cnn.backends.gpu.mutants.mutant import Mutant
from tests.cnn.backends.gpu.mutants.of_convolution import SPLIT
from tests.cnn.backends.gpu.mutants.of_layers import FLAT, MANY_SUMS, PASSES, WINDOWS
from tests.cnn.backends.gpu.mutants.of_training import ADAMW, EVERYTHING, LABELS, OUTCOME, SGD, augment

STRIDED_VIEW, POINTER, NOT_FLOAT32 = "is a strided view", "points to", "is float32, given"
SCHEDULES = ("late", "early", "copies", "kernels")

ARGUMENTS = (
    Mutant("a grid without columns", "convolution.py", "(tile.blocks(rows, filters), 1, 1)",
           "(-(-rows // tile.rows), 1, 1)",
           run(test_convolution.test_all_passes_equal_the_reference, "bf16", test_convolution.ALIGNED[2])),
    Mutant("weights at any address", "convolution.py", "return array if _is_aligned(array) else array.copy()",
           "return array",
           run(test_convolution.test_all_passes_equal_the_reference, "bf16", test_convolution.ALIGNED[3]),
           "misaligned"),
    Mutant("a gradient at any address", "convolution.py", "direct = splits == 1 and _is_aligned(d_weight)",
           "direct = splits == 1",
           run(test_convolution.test_all_passes_equal_the_reference, "bf16", test_convolution.ALIGNED[3]),
           "misaligned"),
    Mutant("less shared memory than the kernel uses", "convolution.py",
           "return stages * (self.rows + self.cols + 16) * _SLICE",
           "return stages * (self.rows + self.cols) * _SLICE", one_pass("d_weight", SPLIT),
           "shared memory out of bounds"),
    Mutant("portions are not added", "convolution.py", "    if not direct:\n        add",
           "    if False:\n        add", one_pass("d_weight", SPLIT)),
    Mutant("padding for any filters", "convolution.py", "if padded and _is_aligned(x) and cols % chunk == 0:",
           "if padded and _is_aligned(x):", run(test_convolution.test_input_with_padded_channels, "bf16", 10),
           "misaligned"),
    Mutant("vectors at any address", "layout.py", "return vector if aligned and multiple % vector == 0 else 1",
           "return vector if multiple % vector == 0 else 1",
           run(test_norm.test_views_with_strides_and_unaligned_views), "misaligned"),
    Mutant("vectors across the last channel", "layout.py",
           "return vector if aligned and multiple % vector == 0 else 1", "return vector if aligned else 1", PASSES,
           "misaligned|division|out of bounds|wrong"),
    Mutant("optimizer vectors at any address", "optimizers.py", "if len(before) > 1:", "if False:",
           run(test_optimizers.test_vectors_without_common_alignment, "nesterov"), "misaligned"),
    Mutant("a strided view to batch norm", "norm.py", "    x = cupy.ascontiguousarray(x)  # (..., C)\n"
           "    channels, rows = x.shape[-1], x.size // x.shape[-1]\n    layout = layout_of(channels, x)\n"
           "    stretch = _stretch(rows, layout)\n",
           "    channels, rows = x.shape[-1], x.size // x.shape[-1]\n    layout = layout_of(channels, x)\n"
           "    stretch = _stretch(rows, layout)\n", run(test_norm.test_views_with_strides_and_unaligned_views),
           STRIDED_VIEW),
    Mutant("a strided view to a sum", "elementwise.py",
           "    arrays = tuple(cupy.ascontiguousarray(array) for array in inputs)  # of one shape",
           "    arrays = tuple(inputs)  # of one shape",
           run(test_elementwise.test_views_with_strides_and_empty_arrays), STRIDED_VIEW),
    Mutant("a float64 momentum", "norm.py", "wide(momentum)", "np.float64(momentum)", PASSES, NOT_FLOAT32),
    Mutant("a Python float for a float", "elementwise.py", "wide_type(x)(factor)", "float(factor)", FLAT,
           NOT_FLOAT32),
    Mutant("a float64 learning rate", "optimizers.py", "(number(lr), number(momentum)",
           "(np.float64(lr), number(momentum)", SGD, NOT_FLOAT32),
    Mutant("a float64 smoothing", "losses.py", "number(smoothing)", "np.float64(smoothing)", LABELS, NOT_FLOAT32),
    Mutant("indices of another type", "pooling.py", "1: \"unsigned char\", 4: \"int\"", "1: \"short\", 4: \"int\"",
           WINDOWS, POINTER),
    Mutant("indices of a large window as bytes", "pooling.py",
           "np.uint8 if math.prod(window.size) <= 256 else np.int32", "np.uint8",
           run(test_pooling.test_windows_agree_with_the_reference, "float32", (2, 6, 7, 16), test_pooling.LARGE)),
    Mutant("soft labels of another type", "losses.py", "targets.astype(outputs.dtype, copy=False)", "targets",
           run(test_losses.test_cross_entropy_matches_the_reference, "soft", np.float64), POINTER),
    Mutant("plans without their padding", "preprocess.py", "(\"colours\", \"f4\", 12), (\"padding\", \"i4\"),",
           "(\"colours\", \"f4\", 12),", augment(EVERYTHING, Mix()), "out of bounds|wrong|misaligned"),
    Mutant("a grid without an image's blocks", "preprocess.py", "grid = (count * -(-height // depth),)",
           "grid = (count,)", augment(EVERYTHING, Mix(), (40, 30))),
    Mutant("positions of one image only", "preprocess.py", "shared = 4 * (width + depth) * (2 if mixes else 1)",
           "shared = 4 * (width + depth)", augment(EVERYTHING, Mix("mixup")), "shared memory out of bounds"),
    Mutant("the two sums are exchanged", "norm.py", "_merge_sums(partial, d_shift, d_scale)",
           "_merge_sums(partial, d_scale, d_shift)", PASSES),
    Mutant("parts are not merged", "norm.py", "    if parts > 1:\n        _merge_sums(partial, out, None)\n", "",
           MANY_SUMS),
    Mutant("no bias correction", "optimizers.py", "1.0 / math.sqrt(1.0 - beta2**step)", "1.0", ADAMW),
    Mutant("the last part of the gradient", "optimizers.py", "        (1,), (THREADS,), (partial, parts, loss",
           "        (1,), (THREADS,), (partial, min(parts, 1), loss", OUTCOME),
    Mutant("one chunk of a global pool", "pooling.py", "(n, layout.slices, -(-pixels // chunk))",
           "(n, layout.slices, 1)",
           run(test_pooling.test_global_pools_agree_with_the_reference, "float64", (1, 33, 21, 8))),
    Mutant("one block of the losses", "losses.py", "        (blocks,), (threads,),\n", "        (1,), (threads,),\n",
           LABELS),
)  # fmt: skip

BUFFERS = test_memory.test_buffers_are_filled_again_only_when_they_are_done_with
REUSED = in_schedules(run(BUFFERS, test_memory.SIZES[0], False), *SCHEDULES)
GROWING = in_schedules(run(BUFFERS, test_memory.SIZES[1], True), *SCHEDULES)
READ = run(test_optimizers.test_values_are_read_as_they_were_when_asked_for)
GRAPH = run(test_rules.test_a_graph_computes_what_its_function_does, "bf16")

STREAMS = (
    Mutant("kernels do not wait for the copy", "memory.py", "        compute.wait_event(slot.copied)\n", "", REUSED),
    Mutant("the copy does not wait for kernels", "memory.py", "        self.stream.wait_event(slot.used)\n", "",
           REUSED, "wrong|IllegalAddress"),
    Mutant("the host does not wait for the copy", "memory.py", "            slot.copied.synchronize()  # before",
           "            pass  # before", GROWING),
    Mutant("kernels are not recorded", "memory.py",
           "            self.slots[(self.count - 1) % _SLOTS].used.record(compute)", "            pass", REUSED),
    Mutant("new buffers do not wait", "memory.py", "            slot.used.record(compute)  # work",
           "            pass  # work",
           in_schedules(run(test_memory.test_new_buffers_wait_for_work_on_the_memory_that_they_get), *SCHEDULES),
           "wrong|IllegalAddress"),
    Mutant("an event of the wrong stream", "memory.py", "slot.copied.record(self.stream)",
           "slot.copied.record(compute)", REUSED),
    Mutant("buffers that are too small", "memory.py", "len(self.host) >= size", "len(self.host) > 0", GROWING,
           "wrong|Error"),
    Mutant("arrays without alignment", "memory.py", "size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT",
           "size += array.nbytes", run(test_memory.test_arrays_of_any_type_and_shape)),
    Mutant("buffers of all threads", "memory.py", "self._rings = threading.local()",
           "self._rings = type('Shared', (), {})()",
           run(test_rules.test_uploads_of_another_thread_leave_arrays_alone)),
    Mutant("results are read at once", "readback.py", "            self._slot.done.synchronize()\n", "", READ),
    Mutant("results are overwritten", "readback.py", "        slot.user = weakref.ref(self)\n", "", READ),
    Mutant("results are views of pinned memory", "readback.py", "self._pinned.copy()", "self._pinned", READ),
    Mutant("arrays of a graph in the common pool", "graph.py", "cupy.cuda.using_allocator(pool.malloc)",
           "cupy.cuda.using_allocator()", GRAPH, "wrong|Error"),
    Mutant("a wait while a graph is recorded", "graph.py", "y = self._run(own_x)",
           "y = self._run(own_x)\n                stream.synchronize()",
           run(test_rules.test_a_graph_is_launched_in_place_of_its_kernels)),
    Mutant("a graph's output is given out", "graph.py", "y.copy()", "y", GRAPH),
    Mutant("a graph of the first input", "graph.py", ".x[...] = x\n", ".x\n", GRAPH),
    Mutant("one graph for all shapes", "graph.py", "key = (x.shape, x.strides, str(x.dtype))",
           "key = (str(x.dtype),)", GRAPH, "wrong|Error"),
    Mutant("a graph's input without padding", "graph.py", "pitch = x.strides[-2]",
           "pitch = x.shape[-1] + 0 * x.strides[-2]", run(test_rules.test_a_graph_sees_padded_channels)),
)  # fmt: skip

BACKEND = (
    Mutant("parameters of an earlier pass", "backend.py",
           "self._narrowed = parameters, elementwise.convert(parameters, BF16)",
           "self._narrowed = parameters, vars(self).setdefault('_copy', elementwise.convert(parameters, BF16))",
           run(test_rules.test_each_pass_converts_the_parameters_as_they_are)),
    Mutant("another parameter", "backend.py", "first = (weight.data.ptr - flat.data.ptr) // flat.itemsize",
           "first = 0", run(test_rules.test_each_pass_converts_the_parameters_as_they_are)),
    Mutant("statistics of another array", "backend.py", "ahead[1] if ahead and ahead[0] is x else",
           "ahead[1] if ahead else",
           run(test_rules.test_statistics_of_a_convolution_are_used_for_its_own_output_only)),
    Mutant("vectors of bfloat16", "backend.py",
           "return elementwise.convert(flat, np.float32) if x.dtype == BF16 else flat", "return flat",
           run(test_rules.test_vectors_are_wide)),
)  # fmt: skip

SEED_STEP = run(test_counts.test_training_step, "seed")

STEPS = (
    Mutant("the host waits for a step", "training/trainer.py",
           "read_outcome = self.backend.read_later(self._outcome)",
           "read_outcome = self.backend.read_later(self._outcome); read_outcome()", SEED_STEP),
    Mutant("the host waits for a copy", "readback.py", "blocking=False", "blocking=True", SEED_STEP),
    Mutant("steps keep their images", "preprocess.py", "    mixes = numbers.mix != \"none\"\n",
           "    mixes = numbers.mix != \"none\"\n    globals().setdefault(\"kept\", []).append(out)\n", SEED_STEP),
    Mutant("images are uploaded twice", "inputs/training_inputs.py",
           "arrays = self.backend.upload(*arrays)",
           "arrays = self.backend.upload(*arrays, *arrays)[: len(arrays)]", SEED_STEP),
    Mutant("the loss is read by the host", "training/trainer.py",
           "self._memory.append(whole.memory)\n        read_outcome",
           "self._memory.append(whole.memory)\n        float(loss)\n        read_outcome", SEED_STEP),
)  # fmt: skip

HOST = ARGUMENTS + STREAMS + BACKEND + STEPS
