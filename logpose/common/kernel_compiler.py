"""Numba's compiler with less work for LLVM, which otherwise takes half of the time to compile our kernels.

Numba optimises every function as if Python called it, and makes machine code of it. An inner function is only ever a
part of kernels, into which LLVM inlines it, and which are optimised as a whole: what was done to it alone is thrown
away. Kernels are large and few, so that optimising each function by itself, before all of them together, does not pay.

The options below are empty where another version of Numba lacks what they need; kernels are compiled as usual then.
"""

from __future__ import annotations

from typing import Any

_KERNEL: dict[str, Any] = {}
_INNER: dict[str, Any] = {}

try:
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import CompilerBase, DefaultPassBuilder
    from numba.core.compiler_machinery import LoweringPass, register_pass
    from numba.core.typed_passes import IRLegalization

    _CHANGED = ("_optimize_functions", "_optimize_final_module", "_finalize_final_module", "_finalize_dynamic_globals")
    if not all(hasattr(JITCodeLibrary, name) for name in _CHANGED):
        raise ImportError

    class _KernelLibrary(JITCodeLibrary):  # type: ignore[misc]  # Numba has no types
        """The code of a kernel: optimised once, together with all that it calls."""

        def _optimize_functions(self, module: Any) -> None:
            module.data_layout = self._codegen._data_layout

    class _InnerLibrary(_KernelLibrary):
        """The code of an inner function, only to be linked into a kernel's: not optimised, and no machine code."""

        @property
        def codegen(self) -> Any:
            return _WithoutEnvironment(self._codegen)

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:
            return 0

    class _WithoutEnvironment:
        """A code generator that tells no function its environment: one without machine code has no place for it.

        Only `print` and object mode need it, which inner functions do not use; nor would they have one in a kernel that
        comes from the cache.
        """

        def __init__(self, codegen: Any) -> None:
            self._codegen = codegen

        def __getattr__(self, name: str) -> Any:
            return getattr(self._codegen, name)

        def set_env(self, name: str, env: Any) -> None:
            pass

    class _ChooseLibrary(LoweringPass):  # type: ignore[misc]
        """A compiler pass: which library the code goes to."""

        library: type[_KernelLibrary]

        def __init__(self) -> None:
            LoweringPass.__init__(self)

        def run_pass(self, state: Any) -> bool:
            if state.library is None:
                state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
                if self.library is _KernelLibrary:
                    state.library.enable_object_caching()
            return False

    @register_pass(mutates_CFG=False, analysis_only=True)
    class _ToKernel(_ChooseLibrary):
        _name, library = "logpose_kernel", _KernelLibrary

    @register_pass(mutates_CFG=False, analysis_only=True)
    class _ToInner(_ChooseLibrary):
        _name, library = "logpose_inner", _InnerLibrary

    class _Compiler(CompilerBase):  # type: ignore[misc]
        """Numba's usual passes, and one that chooses the library."""

        library_pass: type[_ChooseLibrary]

        def define_pipelines(self) -> list[Any]:
            passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
            passes.add_pass_after(self.library_pass, IRLegalization)
            passes.finalize()
            return [passes]

    class _KernelCompiler(_Compiler):
        library_pass = _ToKernel

    class _InnerCompiler(_Compiler):
        library_pass = _ToInner

    _KERNEL["pipeline_class"], _INNER["pipeline_class"] = _KernelCompiler, _InnerCompiler
except ImportError:
    pass

# Options of `numba.njit` for a kernel. No wrapper for C: nothing calls kernels from there.
KERNEL_OPTIONS: dict[str, Any] = {"no_cfunc_wrapper": True, **_KERNEL}
# Options for a function that only kernels call.
INNER_OPTIONS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_INNER}
