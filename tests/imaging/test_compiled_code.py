"""A compiled function that may reorder its sums is copied into whatever compiled function calls it (`forceinline`).

Otherwise the process that compiles calls one machine code of it, and those that load from the cache another, which LLVM made for the
caller: their sums differ in the last bit, and so would the digest of what an interrupted and continued run publishes.
"""

import ast
from pathlib import Path

import sensorium_pipeline.imaging


def _compiled(path: Path) -> dict[str, tuple[str, set[str]]]:
    """For each compiled function of a module its decorator and the names that it calls."""
    result = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list and "njit" in ast.unparse(node.decorator_list[0]):
            called = {call.func.id for call in ast.walk(node) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
            result[node.name] = (ast.unparse(node.decorator_list[0]), called)
    return result


def test_functions_that_reorder_sums_are_copied_into_compiled_callers() -> None:
    folder = Path(sensorium_pipeline.imaging.__file__).parent
    seen = 0
    for path in sorted(folder.glob("*.py")):
        functions = _compiled(path)
        called = set().union(*(names for _, names in functions.values()))
        for name in called & functions.keys():
            decorator = functions[name][0]
            if "fastmath" in decorator:
                seen += 1
                assert "forceinline=True" in decorator, f"{path.name}, {name}"
    assert seen > 5


def test_compiled_functions_call_those_of_their_own_module_only() -> None:
    """Numba renews what it keeps of a module when that module's file changes, not when one that it calls does."""
    folder = Path(sensorium_pipeline.imaging.__file__).parent
    modules = {path: _compiled(path) for path in sorted(folder.glob("*.py"))}
    names = {name for functions in modules.values() for name in functions}
    for path, functions in modules.items():
        for name, (_, called) in functions.items():
            assert not (called & names) - functions.keys(), f"{path.name}, {name}"
