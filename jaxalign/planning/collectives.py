"""What a compiled program sends between devices, read from its HLO text.

XLA decides on these messages while it compiles (GSPMD), so the compiled text is where they can be
seen. Bytes are those that one device receives, as a ring algorithm moves them: with n devices in
the group and a result of R bytes on each,

    all-gather         R (n − 1) / n
    reduce-scatter     R (n − 1)
    all-reduce         2 R (n − 1) / n
    all-to-all         R (n − 1) / n
    collective-permute R

A loop counts as often as it runs: XLA writes the bound into its condition. A product that is cut in
pieces, to fetch an operand meanwhile, is such a loop too, and its counter may go up by two. On TPUs
a collective may be taken in steps within other work; it counts where it starts. A sum whose parts
are taken apart at once is written there as an all-reduce within a fusion named so; it counts as a
reduce-scatter.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<kind>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<shape>[\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
_CALLED_SET = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_WHOLE = re.compile(
    r"%?(?P<name>[\w.\-]+) = (?P<sign>[su])(?:32|64)\[\]\S* constant\((?P<value>\d+)\)"
)
_PART = re.compile(r"%?([\w.\-]+) = .* get-tuple-element\(.*\bindex=(\d+)")
_COMPARED = re.compile(r"ROOT .* compare\(%?([\w.\-]+),")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_PARTITIONS = re.compile(r"^HloModule.*\bnum_partitions=(\d+)", re.MULTILINE)
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_OPERATION = re.compile(r'op_name="([^"]*)"')
# A group's members one by one, the shape of all groups, or the axes of a mesh (or parts of them).
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_SHAPED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Message:
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      dtype: of its arrays, as HLO writes it, such as `bf16`.
      result: bytes of its result on each device.
      received: bytes that one device receives each time.
      times: how often it runs in one call of the program.
      operation: the JAX operation it comes from, such as `jit(step)/jit(_sample)/while/body/…`.
      loops: those of the loops around it, the outermost first, such as `jit(step)/while`.
    """

    kind: str
    dtype: str
    result: int
    received: float
    times: int
    operation: str
    loops: tuple[str, ...] = ()


def read_messages(hlo: str) -> list[Message]:
    """The collectives of a compiled program, from its `compiled.as_text()`.

    Raises:
      ValueError: the text is not such a program, names a collective's devices in a new way, or has
        one in a loop that does not say how often it turns.
    """
    computations, entry = _split(hlo)
    if not entry:
        raise ValueError("no ENTRY in this text: not a compiled program")
    devices = int(_group(_PARTITIONS, hlo) or 1)

    @functools.cache
    def largest(name: str, sign: str) -> int:
        """The largest whole number of a loop's condition; 0 where there is none."""
        found = [0]
        for line in computations.get(name, ()):
            found += [int(x["value"]) for x in _WHOLE.finditer(line) if x["sign"] == sign]
            found += [largest(called, sign) for called in _called(line)]
        return max(found)

    def bound(name: str) -> int:
        """JAX's loops count with a sign, and may compare something else without; XLA's do not."""
        return largest(name, "s") or largest(name, "u")

    def walk(
        name: str, times: int, loops: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, bool, Message]]:
        """Channel of each message, whether that is where it starts in steps, and the message."""
        starts = any('"AsyncCollectiveStart"' in line for line in computations.get(name, ()))
        for line in computations.get(name, ()):
            instruction = _INSTRUCTION.match(line)
            if instruction is None:
                continue
            kind = instruction["kind"].removesuffix("-start")
            if kind in KINDS:
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                if not times:
                    raise ValueError(f"cannot tell how often this runs: {line.strip()[:300]}")
                message = _message(kind, instruction, devices=devices, times=times, loops=loops)
                yield _group(_CHANNEL, line), starts, message
            turns, around = times, loops
            if kind == "while":
                condition, body = _group(_CONDITION, line), _group(_BODY, line)
                stride = _stride(computations[condition], computations[body])
                turns *= int(_group(_TRIPS, line) or -(-bound(condition) // stride))
                around = (*loops, _group(_OPERATION, line))
            for called in _called(line):
                yield from walk(called, turns, around)

    found = list(walk(entry, 1))
    in_steps = {channel for channel, starts, _ in found if starts}
    return [message for channel, starts, message in found if starts or channel not in in_steps]


def _group(pattern: re.Pattern[str], text: str) -> str:
    """What the pattern's group holds where it is found first; "" where it is not."""
    found = pattern.search(text)
    return found[1] if found else ""


def _split(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one that is called."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head is not None:
            lines = computations.setdefault(head["name"], [])
            if line.startswith("ENTRY"):
                entry = head["name"]
        else:
            lines.append(line)
    return computations, entry


def _stride(condition: list[str], body: list[str]) -> int:
    """What a turn of a loop adds to its counter: 1 unless the body says another number."""
    text = "\n".join(condition)
    compared, parts = _group(_COMPARED, text), dict(_PART.findall(text))
    if compared not in parts:
        return 1
    (result,) = [line for line in body if line.lstrip().startswith("ROOT")]
    counter = _OPERAND.findall(result.partition(" tuple(")[2])[int(parts[compared])]
    added = re.search(rf"%{re.escape(counter)} = \S+ add\((.*?)\)", "\n".join(body))
    wholes = {whole["name"]: int(whole["value"]) for x in body if (whole := _WHOLE.search(x))}
    return next((wholes[x] for x in _OPERAND.findall(added[1]) if x in wholes), 1) if added else 1


def _called(line: str) -> list[str]:
    sets = ",".join(_CALLED_SET.findall(line))
    return _CALLED.findall(line) + re.findall(r"[\w.\-]+", sets)


def _message(
    kind: str, instruction: re.Match[str], *, devices: int, times: int, loops: tuple[str, ...]
) -> Message:
    line = instruction.string
    arrays = [
        (array["dtype"], _bytes(array["dtype"], array["shape"]), array["shape"])
        for array in _ARRAY.finditer(re.sub(r"\{[^}]*\}", "", instruction["type"]))
    ]
    if instruction["kind"].endswith("-start") and kind != "all-reduce":
        # What starts and ends apart has the type (operands, results, numbers of its own).
        whole = [array for array in arrays if array[2]] or arrays[:2]
        arrays = whole[len(whole) // 2 :]
    size = sum(size for _, size, _ in arrays)
    n = 2 if kind == "collective-permute" else _group_size(line, devices)
    if kind == "reduce-scatter" and instruction["kind"].startswith("all-reduce"):
        size //= n  # its text has the whole sum for a result
    share = (n - 1) / n
    received = {
        "all-gather": size * share,
        "all-reduce": 2 * size * share,
        "reduce-scatter": size * (n - 1.0),
        "all-to-all": size * share,
        "collective-permute": float(size),
    }[kind]
    return Message(kind, arrays[0][0], size, received, times, _group(_OPERATION, line), loops)


def _group_size(line: str, devices: int) -> int:
    """How many devices take part in a collective."""
    if listed := _LISTED.search(line):
        return len(listed[1].split(","))
    if shaped := _SHAPED.search(line):
        return int(shaped[1])
    if axes := _AXES.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if "replica_groups={}" in line:
        return devices
    raise ValueError(f"cannot tell which devices take part: {line.strip()[:300]}")


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D.*", "", dtype.lstrip("abcdefuspx")) or 8)
    return math.prod(int(n) for n in shape.split(",") if n) * max(bits, 8) // 8
