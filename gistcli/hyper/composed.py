"""Several tuners on one backbone as one: their tensors under prefixed names, their steps together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import ClassVar

from torch import Tensor

from gistcli.methods.base import Trained, Tuner


class ComposedTuner(Tuner):
    """Holds tuners as attributes; what each of them is asked for, all of them are.

    What its own hooks do hangs on `switch`, as everywhere; every part has a switch of its own.
    """

    prefixes: ClassVar[Mapping[str, str]]
    """Attribute that holds a tuner, or nothing -> what stands in front of its tensors' names."""

    def parts(self) -> dict[str, Tuner]:
        """The tuners that there are (so far), by the prefix of their names."""
        found = {prefix: self._modules.get(name) for name, prefix in self.prefixes.items()}
        return {prefix: part for prefix, part in found.items() if isinstance(part, Tuner)}

    def trainable(self) -> dict[str, Trained]:
        """All that the parts train, under prefixed names."""
        return {
            f"{p}{n}": t for p, part in self.parts().items() for n, t in part.trainable().items()
        }

    def frozen(self) -> dict[str, Tensor]:
        """The parts' frozen tensors, under prefixed names."""
        return {f"{p}{n}": t for p, part in self.parts().items() for n, t in part.frozen().items()}

    def idle(self) -> set[str]:
        """What the parts say of themselves, under prefixed names."""
        return {f"{p}{n}" for p, part in self.parts().items() for n in part.idle()}

    def fired(self) -> set[str]:
        """Sites at which every part has acted."""
        return set.intersection(*(part.fired() for part in self.parts().values()))

    @property
    def hooks_only(self) -> bool:
        """Where that is so of every part."""
        return all(part.hooks_only for part in self.parts().values())

    def start(self) -> None:
        """The parts' start."""
        for part in self.parts().values():
            part.start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """The parts' steps."""
        with ExitStack() as stack:
            for part in self.parts().values():
                stack.enter_context(part.step())
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the backbone computes what it computed before `attach`, bit for bit."""
        was = self.switch.enabled
        with ExitStack() as stack:
            for part in self.parts().values():
                stack.enter_context(part.disabled())
            self.switch.enabled = False
            try:
                yield
            finally:
                self.switch.enabled = was

    def detach(self) -> None:
        """Leave the backbone as it was before `attach`, however far that came."""
        for part in reversed(self.parts().values()):
            part.detach()
        super().detach()
