"""What the compilers of accelerators make of normjax, where they are installed."""

from __future__ import annotations

import functools
import json
import os
import subprocess

import pytest

from benchmarks.compilers import hlo, norms, ptx, resources, table, targets

PROGRAM = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%s), index=1
  %all-reduce-start = f32[8,4]{1,0} all-reduce-start(%x), to_apply=%add
  %all-reduce-done = f32[8,4]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %all-reduce-done)
}

%test (s: (s32[], f32[8,4])) -> pred[] {
  %s = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %p = pred[] constant(false)
}

ENTRY %main (x: f32[8,4]) -> (f32[8], f32[8,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %sums = (f32[8]{0}, bf16[8,4]{1,0}) fusion(%x, %x), kind=kInput, calls=%add
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%test, body=%body
  %y = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %z = f32[8]{0} get-tuple-element(%sums), index=0
  ROOT %out = (f32[8]{0}, f32[8,4]{1,0}) tuple(%z, %y)
}
"""


def test_the_reader_finds_kernels_bytes_loops_and_collectives():
    sums, loop = hlo.entry(PROGRAM)
    assert (sums.op, sums.operands, sums.results) == ("fusion", (128,), 32 + 64)
    assert sums.moved == 224 and loop.op == "while"
    assert [[k.op for k in turn] for turn in hlo.loops(PROGRAM)] == [["all-reduce-start"]]
    assert hlo.collectives(hlo.loops(PROGRAM)[0]) == {"all-reduce": 1}
    assert hlo.collectives(hlo.entry(PROGRAM)) == {}


LAUNCHES = (
    "001: kCustomKernel [source       | next=002 (1)] _sum grid: [256, 2, 1] "
    "threads: [128, 2, 1]  shared_memory: 128 bytes\n"
    "002: kWhile [prev=001 (1) | sink        ]\n"
    "    003: kCustomKernel [source | sink        ] loop_fusion grid: [8, 1, 1] "
    "threads: [64, 1, 1]  shared_memory: 0 bytes\n"
    "    004: kCustomKernel [source | sink        ] _sum grid: [256, 2, 1] "
    "threads: [128, 2, 1]  shared_memory: 128 bytes\n"
)
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_sum' for 'sm_90a'
ptxas info    : Function properties for _sum
    384 bytes stack frame, 400 bytes spill stores, 544 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 384 bytes cumulative stack size
ptxas info    : Compile time = 600.914 ms
ptxas info    : Compiling entry function 'loop_fusion' for 'sm_90a'
ptxas info    : Function properties for loop_fusion
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 1 barriers, 8320 bytes smem
"""


def test_what_kernels_take_is_read_once_for_each():
    """Shared memory is what a kernel declares and what it is given at launch."""
    found = ptx.launched(LAUNCHES, ptx.read(PTXAS))
    fields = ("kernel", "blocks", "threads", "registers", "spill_bytes", "shared_bytes")
    assert [tuple(k[f] for f in fields) for k in found] == [
        ("_sum", 512, 256, 255, 944, 128),
        ("loop_fusion", 8, 64, 26, 0, 8320),
    ]
    ours, largest = (resources.on_a_gpu(found, impl) for impl in ("kernel", "xla"))
    assert (ours["registers"], largest["registers"]) == ([255], [26])


def test_the_memory_of_a_tpus_kernel_is_read_from_its_configuration():
    used = '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"512"}]'
    call = '%y = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call"'
    (kernel,) = hlo.kernels(f'  {call}, backend_config={{"scoped_memory_configs":[],{used}}}')
    assert hlo.vmem(kernel) == 512


def test_the_tables_of_the_readme_are_those_of_the_records():
    readme = table.README.read_text()
    records = [json.loads(path.read_text()) for path in sorted(table.RESULTS.glob("*.json"))]
    assert {r["target"] for r in records} == {*targets.NAMES}
    for record in records:
        assert table.section(record) in readme
        assert table.replaced(readme, record) == readme


@functools.cache
def _measured(target: str, part: str, only: str) -> list[dict]:
    """The records that a target's compiler gives, from a process with its environment."""
    if not targets.python(target).exists():
        pytest.skip(f"the compiler for {target} is not installed: make accelerators")
    # `make test` leaves XLA's optimizer out, which is what is looked at here.
    mine = {"JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"}
    env = {k: v for k, v in os.environ.items() if k not in mine}
    command = ["python", "-m", "benchmarks.compilers", target, f"--parts={part}"]
    command = [str(targets.python(target)), *command[1:], f"--only={only}"]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=targets.ROOT,
        env=env | targets.environment() | {"PYTHONPATH": str(targets.ROOT)},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


BESIDE_FLAX = [case for case in norms.CASES if case.flax]


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.NAMES)
def test_norms_compile_without_a_rule_of_the_cpu_and_in_no_more_passes_than_flax(target):
    records = _measured(target, "norms", "beside Flax")
    found = {(r["norm"], *r["shape"], r["dtype"], r["impl"]): r for r in records}
    assert len(found) == len(records) == len(BESIDE_FLAX) * len(norms.DTYPES) * 3
    assert not any(r["branches"] for r in records)
    for case in BESIDE_FLAX:
        for dtype in norms.DTYPES:
            # Whole passes over x: a mean to measure around, and sums of parts, come on top.
            ours, flax = (
                round(found[case.name, *case.shape, dtype, impl]["copies"])
                for impl in ("xla", "flax")
            )
            assert ours <= flax, (case, dtype)
            if target == "h100":
                assert ours <= case.most.get(target, flax), (case, dtype)


@pytest.mark.slow
def test_forward_passes_move_no_more_than_flax_and_those_of_rows_are_one_kernel():
    records = _measured("h100", "forward", "forward")
    found = {(r["norm"], *r["shape"], r["dtype"], r["impl"]): r for r in records}
    assert len(found) == len(records) == len(BESIDE_FLAX) * len(norms.DTYPES) * 3
    for case in BESIDE_FLAX:
        for dtype in norms.DTYPES:
            ours, flax = (found[case.name, *case.shape, dtype, i] for i in ("xla", "flax"))
            assert round(ours["copies"]) <= round(flax["copies"]), (case, dtype)
            if case.name in ("layer", "rms"):  # x in, y out
                assert ours["kernels"] == 1 and ours["copies"] < 2.01, (case, dtype)


@pytest.mark.slow
def test_no_kernel_of_pallas_spills_registers():
    programs = (
        "layer 4096×1024",
        "rms 4096×1024",
        "batch 64×32×32×64",
        "bn_lstm T784 B100 D1 H100",  # one model, and many side by side
    )
    records = _measured("h100", "resources", ",".join(f"{name} kernel" for name in programs))
    assert {r["impl"] for r in records} == {"kernel"} and len(records) >= 6
    for record in records:
        assert len(record["spill_bytes"]) >= 2, record  # forward and backward
        assert not any(record["spill_bytes"]), record


@pytest.mark.slow
def test_collectives_of_a_step_on_a_slice():
    records = _measured("tpu", "slices", "4x4,bn_lstm 8x8 jit")
    found = {(r["layer"], r["slice"], r["mode"]): r["a_step"] for r in records}
    assert len(found) == len(records) == 7
    # Only batch statistics need other chips forward: mean and spread of two places. On 64 chips
    # the batch is as large as what other formulas measure where rows are not split.
    assert found["bn_lstm", "4x4", "jit"] == found["bn_lstm", "8x8", "jit"] == [2, 2]
    assert found["bn_lstm", "4x4", "shard_map"] == [2, 2]
    for mode in ("jit", "shard_map"):
        assert found["lstm", "4x4", mode] == [0, 0]
        assert found["ln_lstm", "4x4", mode][0] == 0
