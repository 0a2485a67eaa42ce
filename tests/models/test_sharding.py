"""Parameters on a mesh: read from a file in parts, where each device keeps its share."""

from eight_devices import run_on_eight_devices

_LOAD = """
import sys
import jax, numpy as np
from jaxalign.host.errors import InputError
from jaxalign.models import load_pretrained
from jaxalign.models.sharding import AXES
from jaxalign.models.files.weights import Leaf

folder = sys.argv[1]
_, expected, _ = load_pretrained(folder)
largest = {}  # bytes of the largest part that was read, by the shape of the whole
read = Leaf.__init__

def watched(self, shape, read_part):
    def note(part):
        out = read_part(part)
        largest[shape] = max(largest.get(shape, 0), out.nbytes)
        return out
    read(self, shape, note)

Leaf.__init__ = watched
for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 1, 7)):
    largest.clear()
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    mesh = jax.sharding.Mesh(devices, AXES)
    try:
        _, params, _ = load_pretrained(folder, mesh=mesh)
    except InputError as error:
        print(error)
        continue
    paired = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True)
    for (path, leaf), whole in paired:
        np.testing.assert_array_equal(leaf, whole)
        # Norms have no axis that `tensor` splits.
        parts = sizes[1] if path[-1].key == "scale" else sizes[1] * sizes[2]
        share = np.prod(leaf.sharding.shard_shape(leaf.shape)) * 4
        assert largest[leaf.shape] <= share == whole.nbytes // parts, (path, leaf.shape)
    print("x".join(map(str, sizes)), "equal")
"""


def test_each_device_reads_its_share(tiny_model_folder):
    """A mesh that does not divide the parameters is named; the others give the same numbers."""
    lines, messages = run_on_eight_devices(_LOAD, tiny_model_folder)
    assert lines == [
        "8x1x1 equal",
        "1x8x1 equal",
        "1x1x8 equal",
        "2x2x2 equal",
        "mesh: tensor = 7 does not divide the 49152 of embed/embedding",
    ], messages
