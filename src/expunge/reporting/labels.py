"""Where to write the names of points so that no name covers a point or another name."""

from collections.abc import Sequence
from math import cos, hypot, pi, sin
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def grown(self, by: float) -> "Box":
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)

    def overlap(self, other: "Box") -> float:
        """The area the two share, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def outside(self, frame: "Box") -> float:
        """The area of this box that lies outside `frame`, in square pixels."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(frame)


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    obstacles: Sequence[Box] = (),
    gap: float = 9.0,
) -> list[Box]:
    """A box for each point's name: close to its point, inside `frame`, off all points, obstacles and other boxes.

    `points` are (x, y) and `sizes` (width, height) in pixels. Each name tries sixteen directions at growing distance
    and takes the first place that is free, else the one that covers least; the most crowded points choose first.
    """
    markers = [Box(x, y, x, y).grown(6) for x, y in points]
    taken: dict[int, Box] = {}
    for index in sorted(range(len(points)), key=lambda i: _room(points, i)):
        others = [*taken.values(), *markers, *obstacles]
        best, least = None, float("inf")
        for candidate, distance in _candidates(points[index], sizes[index], gap):
            covered = sum(candidate.grown(1.5).overlap(other) for other in others)
            cost = 10 * (covered + candidate.outside(frame)) + distance
            if cost < least:
                best, least = candidate, cost
        assert best is not None
        taken[index] = best
    return [taken[index] for index in range(len(points))]


def _room(points: Sequence[tuple[float, float]], index: int) -> float:
    x, y = points[index]
    return min((hypot(x - a, y - b) for i, (a, b) in enumerate(points) if i != index), default=float("inf"))


def _candidates(point: tuple[float, float], size: tuple[float, float], gap: float) -> list[tuple[Box, float]]:
    """Boxes around `point`, each with how far its centre's direction ray was pushed out, in pixels."""
    (x, y), (width, height) = point, size
    found = []
    for ring in range(12):
        distance = gap + 9 * ring
        for turn in range(16):
            angle = pi * turn / 8  # the right side first: there a name reads best
            centre_x = x + cos(angle) * (distance + width / 2)
            centre_y = y + sin(angle) * (distance + height / 2)
            box = Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            found.append((box, distance + 0.1 * min(turn, 16 - turn)))
    return found


def anchor(box: Box, point: tuple[float, float]) -> tuple[float, float]:
    """The place on `box` nearest to `point`."""
    return min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top)
