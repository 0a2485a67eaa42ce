"""Collectives in compiled programs: kinds, bytes, and how often they run."""

import json

import pytest
from eight_devices import run_on_eight_devices

from jaxalign.planning.collectives import Message, read_messages

HLO = """HloModule example, is_scheduled=true, num_partitions=4

%all-reduce-scatter.1 (x: bf16[8,16]) -> bf16[2,16] {
  %sum = bf16[8,16]{1,0} all-reduce(%x), replica_groups={}, to_apply=%add
  ROOT %part = bf16[2,16]{1,0} dynamic-slice(%sum, %here, %zero), dynamic_slice_sizes={2,16}
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %gathered = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%part), channel_id=1, GROUPS, \
metadata={op_name="jit(step)/while/body/while/body/gather"}
}

%inner_condition (p: (s32[], bf16[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%outer_body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %inner = (s32[], bf16[4,8]{1,0}) while(%start), condition=%inner_condition, body=%inner_body
}

%outer_condition (p: (s32[], bf16[4,8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %loop = (s32[], bf16[4,8]{1,0}) while(%start), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}, metadata={op_name="jit(step)/while"}
  %permuted = (f32[2,3]{1,0}, f32[2,3]{1,0}, u32[], u32[]) collective-permute-start(%x), \
source_target_pairs={{0,1},{1,0}}
  %apart = ((bf16[2]{0}, f32[3]{0}), (bf16[4]{0}, f32[6]{0})) all-gather-start(%x, %y), \
replica_groups=[2,2]<=[4]
  %scattered = bf16[2,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %both = (f32[10]{0}, f32[6]{0}) all-reduce(%x, %y), replica_groups={{0,1,2,3},{4,5,6,7}}, \
to_apply=%add
}
"""


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=mesh['data'=2,'fsdp'=8,'tensor'=4] {'data','fsdp'}", 16),
        ("replica_groups=mesh['data'=2,'tensor'=4] {'tensor':(2)2}", 2),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", 2),
    ],
)
def test_by_hand(groups, size):
    """64 bytes gathered in a loop of 5 within a loop of 3; then one of each kind.

    Two arrays, of 8 and 24 bytes, gathered at once; 256 bytes summed over all 4 devices, each of
    which keeps 64; a sum of 16 numbers.
    """
    operation = "jit(step)/while/body/while/body/gather"
    loops = ("jit(step)/while", "")
    assert read_messages(HLO.replace("GROUPS", groups)) == [
        Message("all-gather", "bf16", 64, 64 * (size - 1) / size, 15, operation, loops),
        Message("collective-permute", "f32", 24, 24.0, 1, ""),
        Message("all-gather", "bf16", 32, 16.0, 1, ""),
        Message("reduce-scatter", "bf16", 64, 64 * 3.0, 1, ""),
        Message("all-reduce", "f32", 64, 2 * 64 * 3 / 4, 1, ""),
    ]


IN_STEPS = """
%begin (p: f32[4]) -> (f32[4], f32[8]) {
  %g.1 = f32[8]{0} all-gather(%p), channel_id=9, replica_groups=[1,2]<=[2]
  ROOT %start = (f32[4], f32[8]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p: f32[4], x: f32[3,3]) -> (f32[3,3], f32[8]) {
  %g.2 = f32[8]{0} all-gather(%p), channel_id=9, replica_groups=[1,2]<=[2]
}

%end (p: f32[4]) -> f32[8] {
  %g.3 = f32[8]{0} all-gather(%p), channel_id=9, replica_groups=[1,2]<=[2]
  ROOT %done = f32[8] custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %fusion = (f32[3,3], f32[8]) fusion(%x, %y), kind=kCustom, calls=%meanwhile
}

%condition (p: (s32[], f32[4])) -> pred[] {
  %bound = s32[] constant(30)
}

ENTRY %main (a: f32[4]) -> f32[8] {
  %first = (f32[4], f32[8]) fusion(%a), kind=kCustom, calls=%begin
  %loop = (s32[], f32[4]) while(%first), condition=%condition, body=%body
  %last = f32[8] fusion(%loop), kind=kCustom, calls=%end
}
"""


BESIDE_A_PRODUCT = """
%body (p: (bf16[8], u32[])) -> (bf16[8], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %once = bf16[8]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %again = bf16[8]{0} collective-permute(%once), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %next = u32[]{:T(128)S(6)} add(%i, %two), metadata={op_name="jit(step)/dot_general"}
  ROOT %all = (bf16[8]{0}, u32[]{:T(128)}) tuple(%again, /*index=1*/%next)
}

%condition (p: (bf16[8], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(7)
  %counter = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %loop = (bf16[8], u32[]) while(%start), condition=%condition, body=%body
}
"""


def test_a_loop_beside_a_product_takes_two_steps_in_a_turn():
    """0, 2, 4 and 6 are below 7: four turns, of which each passes 16 bytes on twice."""
    found = read_messages(BESIDE_A_PRODUCT)
    assert found == 2 * [Message("collective-permute", "bf16", 16, 16.0, 4, "", ("",))]


def test_text_that_is_not_understood_is_no_zero():
    with pytest.raises(ValueError, match="not a compiled program"):
        read_messages("HloModule nothing")
    with pytest.raises(ValueError, match="cannot tell which devices take part: %gathered"):
        read_messages(HLO.replace("GROUPS", "replica_groups=new"))
    unbounded = HLO.replace("constant(5)", "get-tuple-element(%p), index=2")
    with pytest.raises(ValueError, match="cannot tell how often this runs: %gathered"):
        read_messages(unbounded.replace("GROUPS", "replica_groups={}"))


def test_a_collective_in_steps_counts_once():
    """It starts before a loop of 30, is carried on in it, and ends behind it."""
    assert read_messages(IN_STEPS) == [Message("all-gather", "f32", 32, 16.0, 1, "")]


_PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxalign.models.sharding import make_mesh
from jaxalign.planning.collectives import read_messages

mesh = make_mesh(2, 4, 1)

def local(x):  # [4, 32]
    def turn(carry, _):
        return carry + jax.lax.psum(jnp.sin(carry), "fsdp"), None
    x, _ = jax.lax.scan(turn, x, length=7)
    rows = jax.lax.all_gather(x, "data", axis=0, tiled=True)            # [8, 32]
    x = jax.lax.psum_scatter(rows, "data", scatter_dimension=0, tiled=True)
    x = jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True)                  # [16, 8]
    return jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])

step = jax.shard_map(
    local, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), check_vma=False
)
program = jax.jit(step).lower(jnp.ones((32, 32))).compile()
for m in read_messages(program.as_text()):
    print(json.dumps([m.kind, m.dtype, m.received, m.times]))
"""


def test_of_a_program():
    """What one device of each group receives of 512 bytes, on a mesh of 2 x 4."""
    lines, messages = run_on_eight_devices(_PROGRAM)
    assert [json.loads(line) for line in lines] == [
        ["all-reduce", "f32", 2 * 512 * 3 / 4, 7],
        ["all-gather", "f32", 1024 / 2, 1],
        ["reduce-scatter", "f32", 512, 1],
        ["all-to-all", "f32", 512 * 3 / 4, 1],
        ["collective-permute", "f32", 512, 1],
    ], messages
