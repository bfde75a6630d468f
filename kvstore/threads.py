"""Share the iterations of a loop among threads of a kernel, chunk by chunk.

    @allocating_kernel()
    def _double_rows(begin, end, rows_AD): ...          # iterations begin to end; returns nothing or an integer

    @njit(cache=True)
    def double_rows(rows_AD):
        for_chunks(_double_rows, rows_AD.shape[0], chunk_size(rows_AD.shape[0], rows_AD.size), (rows_AD,))

Numba's ``prange`` takes seconds to compile, and divides a loop evenly beforehand, so that all threads wait for one that
another process, or a background thread, slows down. Here, a thread that is done claims another chunk. The threads are
those of numba, as many as ``numba.set_num_threads`` allows.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from crossfade.kvstore.jit import inner_kernel, intrinsic
from crossfade.kvstore.vector_ir import INT64

MIN_PARALLEL_VALUES = 1 << 18
"""Values from which on a kernel that reads and writes rows once shares them among threads.

Fewer take one thread a few tenths of a millisecond, a millisecond if they are scattered over memory. To wake the others
takes as long where cores are busy, and they poll for more work afterwards.
"""
_LARGEST_CHUNK = 256
"""Long enough that what a thread prefetches ahead in its own chunk covers almost all of it."""
_CHUNKS_PER_THREAD = 8
_POINTER = ir.IntType(8).as_pointer()
_NEXT, _SUM, _FAILED, _STARTED, _COUNT, _SIZE, _FIRST_ARGUMENT = range(7)
"""Fields of the memory that the threads of a loop share; the arguments follow."""


@intrinsic
def thread_count(_context: Any) -> Any:
    """Return how many threads a loop may have."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        return _thread_count(context, builder)

    return types.int64(), generate


def _thread_count(context: Any, builder: Any) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(INT64, []), "get_num_threads")  # type: ignore[no-untyped-call]
    return builder.call(function, [])


@inner_kernel()
def balanced_chunk_size(count):  # type: ignore[no-untyped-def]
    """Return the iterations of a chunk, of ``count`` in all, such that threads get about as much to do."""
    return max(1, min(_LARGEST_CHUNK, count // (thread_count() * _CHUNKS_PER_THREAD)))


@inner_kernel()
def chunk_size(count, values):  # type: ignore[no-untyped-def]
    """Return the same, but one chunk for all iterations if they read and write too few ``values`` for threads."""
    return max(1, count) if values < MIN_PARALLEL_VALUES else balanced_chunk_size(count)


@intrinsic
def for_chunks(context: Any, body: Any, count: Any, size: Any, arguments: Any) -> Any:
    """Call ``body(begin, end, *arguments)`` for chunks of ``size`` iterations, of ``count``; return the sum of results.

    The calls are shared among threads if there is more than one. Results are integers, or None, which counts as 0.
    """
    return _loop(context, (body, count, size, arguments), by_thread=False)


@intrinsic
def for_chunks_by_thread(context: Any, body: Any, count: Any, size: Any, arguments: Any) -> Any:
    """Do the same, but call ``body(begin, end, thread, *arguments)``, where threads have numbers below their count.

    So a thread can use the same memory for all of its chunks, which is then in its cache.
    """
    return _loop(context, (body, count, size, arguments), by_thread=True)


def _loop(context: Any, signature: tuple[Any, Any, Any, Any], *, by_thread: bool) -> Any:
    """Return the types of a loop, and what generates it."""
    body, _, _, arguments = signature
    if not isinstance(arguments, types.BaseTuple):
        raise TypingError(f"found {arguments}: expected a tuple of arguments")
    numbers = 3 if by_thread else 2
    kinds = [types.int64] * numbers + [types.unliteral(kind) for kind in arguments.types]  # type: ignore[attr-defined,no-untyped-call]
    called = context.resolve_function_type(body, tuple(kinds), {})
    if called is None or called.return_type not in (types.none, types.int64):
        raise TypingError(f"{body} returns neither an integer nor None for {kinds}")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        result = body.dispatcher.overloads[called.args]
        context.active_code_library.add_linking_library(result.library)
        fields = [context.get_value_type(kind) for kind in called.args[numbers:]]
        shared = ir.LiteralStructType([INT64] * _FIRST_ARGUMENT + fields)
        memory = cgutils.alloca_once(builder, shared)  # type: ignore[no-untyped-call]
        given = (INT64(0), INT64(0), INT64(0), INT64(0), values[1], values[2])
        taken = (
            context.cast(builder, builder.extract_value(values[3], at), kind, called.args[numbers + at])
            for at, kind in enumerate(signature.args[3].types)
        )
        for at, value in enumerate((*given, *taken)):
            builder.store(value, _field(builder, memory, at))
        thread = _thread_function(context, builder.module, shared, result, by_thread=by_thread)
        _call_in_threads(context, builder, thread, memory, values)
        failed = builder.icmp_unsigned("!=", builder.load(_field(builder, memory, _FAILED)), INT64(0))
        with cgutils.if_unlikely(builder, failed):  # type: ignore[no-untyped-call]
            context.call_conv.return_user_exc(builder, MemoryError, ("a thread of a kernel failed",))
        return builder.load(_field(builder, memory, _SUM))

    return types.int64(body, types.int64, types.int64, arguments), generate


def _field(builder: Any, memory: Any, number: int) -> Any:
    return builder.gep(memory, [ir.IntType(32)(0), ir.IntType(32)(number)], inbounds=True)


def _thread_function(context: Any, module: Any, shared: Any, result: Any, *, by_thread: bool) -> Any:
    """Generate the function that a thread runs: it claims chunks until there are none, and calls the body for each."""
    kind = ir.FunctionType(ir.VoidType(), [_POINTER] * 4)
    function = ir.Function(module, kind, module.get_unique_name("for_chunks"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    memory = builder.bitcast(function.args[3], shared.as_pointer())
    count, size = (builder.load(_field(builder, memory, at)) for at in (_COUNT, _SIZE))
    arguments = [builder.load(_field(builder, memory, at)) for at in range(_FIRST_ARGUMENT, len(shared.elements))]
    numbers = [builder.atomic_rmw("add", _field(builder, memory, _STARTED), INT64(1), "seq_cst")] if by_thread else []
    claim, call, done = (builder.append_basic_block(name) for name in ("claim", "call", "done"))
    builder.branch(claim)
    builder.position_at_end(claim)
    begin = builder.atomic_rmw("add", _field(builder, memory, _NEXT), size, "seq_cst")
    builder.cbranch(builder.icmp_signed("<", begin, count), call, done)
    builder.position_at_end(call)
    end = builder.add(begin, size)
    end = builder.select(builder.icmp_signed("<", end, count), end, count)
    status, value = context.call_internal_no_propagate(
        builder, result.fndesc, result.signature, [begin, end, *numbers, *arguments]
    )
    with cgutils.if_unlikely(builder, status.is_error):  # type: ignore[no-untyped-call]
        builder.store_atomic(INT64(1), _field(builder, memory, _FAILED), "seq_cst", 8)
    if result.signature.return_type == types.int64:
        builder.atomic_rmw("add", _field(builder, memory, _SUM), value, "seq_cst")
    builder.branch(claim)
    builder.position_at_end(done)
    builder.ret_void()
    return function


def _call_in_threads(context: Any, builder: Any, thread: Any, memory: Any, values: Any) -> None:
    """Generate the call of the function of a thread: in this one, or where there are several chunks, in several."""
    nothing, data = ir.Constant(_POINTER, None), builder.bitcast(memory, _POINTER)
    with builder.if_else(builder.icmp_signed("<=", values[1], values[2])) as (one, several):
        with one:
            builder.call(thread, [nothing, nothing, nothing, data])
        with several:
            threads = _thread_count(context, builder)
            # To the threading layer, this is a loop of as many iterations as threads, without arrays.
            dimensions = cgutils.alloca_once_value(builder, threads)  # type: ignore[no-untyped-call]
            steps = cgutils.alloca_once_value(builder, INT64(0))  # type: ignore[no-untyped-call]
            kind = ir.FunctionType(ir.VoidType(), [_POINTER] * 5 + [INT64] * 3)
            run = cgutils.get_or_insert_function(builder.module, kind, "numba_parallel_for")  # type: ignore[no-untyped-call]
            arrays = cgutils.alloca_once_value(builder, nothing)  # type: ignore[no-untyped-call]
            pointers = [builder.bitcast(pointer, _POINTER) for pointer in (thread, arrays, dimensions, steps, memory)]
            builder.call(run, [*pointers, INT64(0), INT64(0), threads])
