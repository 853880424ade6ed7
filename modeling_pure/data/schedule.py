"""Choose the source of the next sequence."""


class Schedule:
    """Keeps every source within one sequence of its share after any number of sequences, in exact integers.

    Let w_i be integer weights of sum W, and n_i the sequences drawn from source i out of t. The source has a deficit
    if w_i (t + 1) - W n_i > 0, and its next sequence is due before sequence ceil((n_i + 1) W / w_i). Of the sources
    with a deficit, the one that is due first is drawn. Drawing the largest deficit instead lets a source fall more
    than one sequence behind in a mixture of five or more (weights 1 to 2,000, 400 sequences: up to 1.14).

    Liu and Layland 1973 (earliest deadline first); Tijdeman 1980, "The chairman assignment problem", for the bound.

    Args:
        weights: positive integers by source name.
        phase: number of sequences to skip at the beginning, so that workers do not all draw the same source at once.
    """

    def __init__(self, weights: dict[str, int], phase: int = 0) -> None:
        self.weights = dict(weights)
        self.phase = phase
        self._begin()

    def next_source(self) -> str:
        """The source of the next sequence."""
        drawn, total = sum(self.counts.values()), sum(self.weights.values())
        due = {
            name: -(-(self.counts[name] + 1) * total // weight)
            for name, weight in self.weights.items()
            if weight * (drawn + 1) > total * self.counts[name]
        }
        return min(due, key=due.__getitem__)

    def draw(self, name: str) -> None:
        """Count a sequence of `name`."""
        self.counts[name] += 1

    def drop(self, name: str) -> None:
        """Remove a source: the others share its part in proportion to their weights, counted from here on."""
        del self.weights[name]
        self._begin()

    def _begin(self) -> None:
        self.counts = dict.fromkeys(self.weights, 0)
        for _ in range(self.phase % sum(self.weights.values()) if self.weights else 0):
            self.draw(self.next_source())

    def state_dict(self) -> dict[str, int]:
        """Sequences drawn since the shares last changed, by source, without dropped sources."""
        return dict(self.counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counts of `state`."""
        # In the recipe's order, which breaks ties: Trainer sorts the keys of its JSON.
        self.weights = {name: weight for name, weight in self.weights.items() if name in state}
        self.counts = dict(state)
