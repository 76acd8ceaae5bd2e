"""Every instance of every kernel that the GPU backend can ask for, and what its machine code must have."""

from typing import NamedTuple

from cnn.backends.gpu import convolution


class Instance(NamedTuple):
    """A kernel with its template arguments.

    needs: instructions that must occur, keys of `tests.cuda_compile.resources.INSTRUCTIONS`.
    min_blocks: how many of its blocks must fit on one multiprocessor.
    dynamic_shared: bytes of shared memory that the launch asks for.
    local: whether it may use local memory, as the slow paths of cos and pow do.
    main: whether it takes much of a step's time, and is compiled for all architectures in every run of the tests.
    """

    name: str
    needs: tuple[str, ...] = ()
    min_blocks: int = 1
    dynamic_shared: int = 0
    local: bool = False
    main: bool = False


TYPES = {"double": 8, "float": 4, "bf16": 2}  # of feature maps, and their bytes
WIDE = ("double", "float")  # types of sums and parameters
LOADS, STORES, BOTH = ("LDG.128",), ("STG.128",), ("LDG.128", "STG.128")


def _vectors(
    kernel: str, needs: tuple[str, ...] = BOTH, more: str = "", main: tuple[str, ...] = ()
) -> list[Instance]:
    """A kernel<type, vector, more>, in which a thread loads 16 bytes at once, or one element."""
    return [
        Instance(f"{kernel}<{kind}, {vector}{more}>", needs, min_blocks=2, main=kind in main)
        if vector > 1 else Instance(f"{kernel}<{kind}, {vector}{more}>")
        for kind, item in TYPES.items() for vector in (16 // item, 1)
    ]  # fmt: skip


def _wide(kernel: str) -> list[Instance]:
    return [Instance(f"{kernel}<{wide}>") for wide in WIDE]


def _flat(kernel: str, needs: tuple[str, ...]) -> list[Instance]:
    """A kernel<type, vector> over flat vectors of the parameters' type."""
    return [
        Instance(f"{kernel}<{wide}, {vector}>", needs if vector > 1 else (), min_blocks=3)
        for wide in WIDE for vector in (16 // TYPES[wide], 1)
    ]  # fmt: skip


def _convolutions() -> list[Instance]:
    """The passes in every precision, with each tile where the channels fill whole copies of 16 bytes."""
    found = []
    for kind, math in (("double", "PLAIN"), ("float", "PLAIN"), ("float", "TF32"), ("bf16", "BF16")):
        needs = ("LDGSTS", "STG.128") if math == "PLAIN" else ("HMMA", "LDGSTS", "STG.128")
        for which in ("FORWARD", "INPUT", "WEIGHT"):
            # Of float32, ldmatrix can only load an operand whose lines lie along the summed index.
            ldmatrix = ("LDSM",) if math == "BF16" or (math == "TF32" and which != "WEIGHT") else ()
            for tile in convolution.TILES:
                for aligned in (True, False):
                    if tile == convolution.TILES[-1] or (aligned and kind != "double"):
                        name = convolution.kernel_name(kind, math, which, tile, aligned)
                        must = (*needs, *ldmatrix) if aligned else needs[:-2]
                        main = aligned and math != "PLAIN" and tile == convolution.TILES[0]
                        found.append(Instance(name, must, 2, tile.shared_bytes, main=main))
    return found


CONVOLUTION = [*_convolutions(), *_wide("add_splits")]

NORM = [
    *_vectors("norm_statistics", LOADS), *_vectors("norm_apply", main=("bf16",)),
    *_vectors("norm_backward_sums", LOADS, main=("bf16",)), *_vectors("norm_backward_apply", main=("bf16",)),
    *_vectors("channel_sums", LOADS), *_wide("norm_merge"),
    *(Instance(f"sums_merge<{wide}, {sums}>") for wide in WIDE for sums in (1, 2)),
]  # fmt: skip

POOLING = [
    *_vectors("max_pool", more=", unsigned char"), *_vectors("max_pool_backward", more=", unsigned char"),
    *_vectors("max_pool", more=", int"), *_vectors("max_pool_backward", more=", int"),
    *_vectors("max_pool_2x2"), *_vectors("max_pool_2x2_backward"), *_vectors("average_pool"),
    *_vectors("average_pool_backward"), *_vectors("global_average_pool", LOADS), *_vectors("global_max_pool", LOADS),
    *_vectors("global_pool_backward", STORES),
]  # fmt: skip

ELEMENTWISE = [
    *_vectors("activate"), *_vectors("activate_backward"), *_vectors("add"), *_vectors("scale"), *_vectors("dropout"),
    *_wide("softmax"), *_wide("softmax_backward"),
    Instance("convert<float, bf16, 4>", LOADS), Instance("convert<float, bf16, 1>"),
    Instance("convert<bf16, float, 4>", STORES), Instance("convert<bf16, float, 1>"),
]  # fmt: skip

PREPROCESS = [
    *(Instance(f"{kernel}<{kind}>") for kernel in ("resample", "blend") for kind in TYPES),
    *(Instance(f"augment<{kind}, {mixes}>") for kind in TYPES for mixes in ("false", "true")),
    *(Instance(f"plan_augmentation<{wide}>", local=True) for wide in WIDE),  # a thread for each image
]

OPTIMIZERS = [
    *_flat("sgd_step", BOTH), *_flat("adamw_step", BOTH), *_flat("average_step", BOTH), *_flat("copy_step", BOTH),
    *_flat("sum_squares", LOADS), *_wide("judge_step"),
]  # fmt: skip

MICRO_BATCHES = [*_flat("merge_sums", BOTH), *_wide("move_statistics")]

LOSSES = [
    *(Instance(f"{kernel}<{wide}, {lanes}>") for kernel in ("softmax_cross_entropy", "count_correct")
      for wide in WIDE for lanes in (8, 32)),
    *_wide("loss_merge"),
]  # fmt: skip

INSTANCES = {
    "convolution.cu": CONVOLUTION, "norm.cu": NORM, "pooling.cu": POOLING, "elementwise.cu": ELEMENTWISE,
    "preprocess.cu": PREPROCESS, "optimizers.cu": OPTIMIZERS, "micro_batches.cu": MICRO_BATCHES,
    "losses.cu": LOSSES,
}  # fmt: skip
