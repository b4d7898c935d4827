"""Seeing every kernel that runs, without what torch's compiler takes."""

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A mode of kernels that does not load torch's compiler, which takes a second and 130 MB.

    torch would have it leave these modes out of what it compiles; they are entered only around calls of our own.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Answer torch's own question, of 2.10 and later."""
        return False
