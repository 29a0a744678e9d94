"""Progress of a run: a bar on a terminal, one plain line at the end anywhere else."""

import sys

from tqdm import tqdm


class Progress:
    """`with Progress("full", 30) as progress:` then `progress.step()` 30 times, and `progress.done(text)`."""

    def __init__(self, name: str, steps: int):
        self.label = f"{name:<14}"
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=steps, desc=self.label, unit="step", leave=False, disable=not terminal, ncols=80)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def step(self) -> None:
        self.bar.update()

    def done(self, text: str) -> None:
        """Replace the bar with a line that stays."""
        self.bar.close()
        print(f"{self.label} {text}", flush=True)
