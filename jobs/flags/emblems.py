"""Emblems of the pirate crews, as stencils without colour.

An emblem is a head (skull, headgear, something on the face) in front of a device (crossed bones, a ship's wheel, ...).
Every element occurs with several crews, so only the whole emblem identifies a crew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = Sequence[tuple[float, float]] | NDArray[np.float64]  # (n, 2)
Ink = tuple[int, int, int]
Element = Callable[["Pen"], None]

# A stencil is an RGB image; its channels are the coverage of three inks. Black is bare cloth.
CLOTH: Ink = (0, 0, 0)
BONE: Ink = (255, 0, 0)
DYE: Ink = (0, 255, 0)
SHADE: Ink = (0, 0, 255)

HALO = 0.045  # bare cloth around an element, to set white bones off from a white skull
SUPERSAMPLING = 4

_ANGLES = np.linspace(0.0, 2 * np.pi, 40)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # (40, 2)


@dataclass(frozen=True)
class Pen:
    """Draws in emblem units: x to the right, y down, the emblem within -1..1."""

    canvas: ImageDraw.ImageDraw
    axes: NDArray[np.float64]  # (2, 3): emblem units -> pixels
    halo: bool = False  # draw everything wider by HALO, and in bare cloth

    def moved(self, x: float = 0.0, y: float = 0.0, scale: float = 1.0, degrees: float = 0.0) -> Pen:
        """A pen whose drawings are scaled, rotated clockwise, then shifted by (x, y)."""
        c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
        local = np.array([[c, -s, x], [s, c, y], [0.0, 0.0, 1.0]])  # (3, 3)
        return replace(self, axes=self.axes @ local)

    def sides(self) -> tuple[Pen, Pen]:
        """This pen and its mirror image, for the two halves of a symmetrical element."""
        return self, replace(self, axes=self.axes @ np.diag([-1.0, 1.0, 1.0]))

    def shape(self, points: Points, ink: Ink) -> None:
        """Draw a filled polygon."""
        outline = np.asarray(points)  # (n, 2)
        self._fill(outline, ink)
        if self.halo:
            for nudge in HALO * CIRCLE[::4]:
                self._fill(outline + nudge, ink)

    def blob(self, points: Points, ink: Ink) -> None:
        """Draw a filled shape with a smooth outline through the points."""
        self.shape(smooth(points, closed=True), ink)

    def oval(self, x: float, y: float, rx: float, ry: float, ink: Ink) -> None:
        """Draw a filled ellipse."""
        grown = HALO if self.halo else 0.0
        self._fill(CIRCLE * (rx + grown, ry + grown) + (x, y), ink)

    def stroke(self, points: Points, width: float, ink: Ink, tip: float | None = None) -> None:
        """Draw a line with round ends. With a tip, its width changes from `width` to `tip`."""
        path = np.asarray(points)  # (n, 2)
        if tip is None:
            thickness = self._width(width + (2 * HALO if self.halo else 0.0))
            self.canvas.line(self._pixels(path), fill=CLOTH if self.halo else ink, width=thickness, joint="curve")
            path, tip = path[[0, -1]], width
        for (x, y), w in zip(path, np.linspace(width, tip, len(path)), strict=True):
            self.oval(x, y, w / 2, w / 2, ink)

    def _fill(self, points: Points, ink: Ink) -> None:
        self.canvas.polygon(self._pixels(points), fill=CLOTH if self.halo else ink)

    def _pixels(self, points: Points) -> list[float]:
        flat: list[float] = (np.asarray(points) @ self.axes[:, :2].T + self.axes[:, 2]).ravel().tolist()
        return flat  # x, y, x, y, ...

    def _width(self, units: float) -> int:
        return max(1, round(units * float(np.sqrt(abs(np.linalg.det(self.axes[:, :2]))))))


def smooth(points: Points, closed: bool = False, steps: int = 10) -> NDArray[np.float64]:
    """A Catmull-Rom spline through the points (n, 2): `steps` points (m, 2) per segment."""
    p = np.asarray(points)  # (n, 2)
    padded = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])  # (n + 3 or n + 2, 2)
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))  # (segments, 1, 2) each
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None]  # (steps, 1)
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    through = curve.reshape(-1, 2)  # (segments * steps, 2)
    return through if closed else np.concatenate([through, p[-1:]])


# fmt: off
# --- skulls: crown at y = -0.5, face down to about y = 0.5 ---


def round_skull(pen: Pen) -> None:
    """Round eyes and a full set of teeth."""
    pen.blob([(-0.2, 0.2), (-0.24, 0.42), (0, 0.52), (0.24, 0.42), (0.2, 0.2)], BONE)
    pen.blob([(-0.4, -0.1), (-0.28, -0.4), (0, -0.5), (0.28, -0.4), (0.4, -0.1), (0.3, 0.2), (-0.3, 0.2)], BONE)
    if pen.halo:
        return
    for side in pen.sides():
        side.oval(0.17, -0.05, 0.115, 0.13, CLOTH)
        side.stroke([(0.1, 0.24), (0.1, 0.42)], 0.03, CLOTH)
        side.stroke(smooth([(0.33, -0.24), (0.36, -0.08), (0.3, 0.09)]), 0.04, SHADE)
    pen.shape([(0, 0.06), (0.055, 0.17), (-0.055, 0.17)], CLOTH)
    pen.stroke([(0, 0.25), (0, 0.46)], 0.03, CLOTH)
    pen.stroke(smooth([(-0.22, 0.31), (0, 0.35), (0.22, 0.31)]), 0.03, CLOTH)


def long_skull(pen: Pen) -> None:
    """Slanted eyes, hollow cheeks and a pointed jaw."""
    pen.blob([(-0.33, -0.2), (-0.22, -0.44), (0, -0.5), (0.22, -0.44), (0.33, -0.2), (0.28, 0.06), (0.2, 0.2),
              (0.17, 0.45), (0, 0.62), (-0.17, 0.45), (-0.2, 0.2), (-0.28, 0.06)], BONE)
    if pen.halo:
        return
    for side in pen.sides():
        side.blob([(0.06, 0.02), (0.16, -0.12), (0.27, -0.18), (0.25, 0.0), (0.14, 0.07)], CLOTH)
        side.stroke([(0.07, 0.31), (0.07, 0.44)], 0.03, CLOTH)
        side.stroke(smooth([(0.25, 0.1), (0.16, 0.2), (0.15, 0.3)]), 0.04, SHADE)
    pen.shape([(0, 0.08), (0.05, 0.21), (0, 0.18), (-0.05, 0.21)], CLOTH)
    pen.stroke([(-0.14, 0.37), (0.14, 0.37)], 0.03, CLOTH)


def broad_skull(pen: Pen) -> None:
    """Large uneven eye sockets, a crack, no lower jaw."""
    pen.blob([(-0.47, -0.08), (-0.34, -0.4), (0, -0.5), (0.34, -0.4), (0.47, -0.08), (0.36, 0.16), (0.25, 0.2),
              (0.22, 0.38), (-0.22, 0.38), (-0.25, 0.2), (-0.36, 0.16)], BONE)
    if pen.halo:
        return
    pen.oval(-0.21, -0.04, 0.15, 0.15, CLOTH)
    pen.oval(0.21, -0.04, 0.12, 0.12, CLOTH)
    pen.blob([(0, 0.09), (0.07, 0.19), (0, 0.17), (-0.07, 0.19)], CLOTH)
    for x in (-0.13, 0.0, 0.13):
        pen.stroke([(x, 0.27), (x, 0.42)], 0.035, CLOTH)
    pen.stroke([(0.12, -0.5), (0.16, -0.38), (0.1, -0.33), (0.15, -0.25)], 0.025, SHADE)


# --- devices, behind the head; they reach to the edge of the emblem ---


def bones(pen: Pen) -> None:
    """Two crossed thigh bones."""
    for side in pen.sides():
        bone = side.moved(y=0.12, degrees=36)
        bone.stroke([(-0.84, 0), (0.84, 0)], 0.13, BONE)
        for x in (-0.88, 0.88):
            bone.oval(x, -0.085, 0.1, 0.095, BONE)
            bone.oval(x, 0.085, 0.1, 0.095, BONE)


def swords(pen: Pen) -> None:
    """Two cutlasses, crossed under the chin, points up."""
    for side in pen.sides():
        sword = side.moved(y=0.34, degrees=-43)
        sword.blob([(-0.5, -0.06), (0.8, -0.11), (1.22, -0.24), (1.0, 0.02), (0.4, 0.1), (-0.5, 0.06)], BONE)
        sword.stroke([(-0.86, 0), (-0.5, 0)], 0.1, SHADE)
        sword.stroke(smooth([(-0.5, -0.18), (-0.45, 0), (-0.52, 0.17), (-0.72, 0.2)]), 0.09, DYE)


def hooks(pen: Pen) -> None:
    """Two hand hooks in their cuffs, crossed under the chin."""
    for side in pen.sides():
        hook = side.moved(y=0.3, degrees=38)
        curl = [(0, 0.5), (0, -0.72), (0.06, -0.98), (0.26, -1.1), (0.46, -1.02), (0.5, -0.8), (0.38, -0.7)]
        hook.stroke(smooth(curl, steps=24), 0.15, BONE, 0.05)
        hook.shape([(-0.09, 0.36), (0.09, 0.36), (0.2, 0.78), (-0.2, 0.78)], DYE)


def anchor(pen: Pen) -> None:
    """An anchor, upright."""
    pen.stroke([(0, -0.7), (0, 0.85)], 0.14, BONE)
    pen.stroke([(-0.42, -0.58), (0.42, -0.58)], 0.12, DYE)
    pen.oval(0, -0.84, 0.16, 0.16, BONE)
    for side in pen.sides():
        side.stroke(smooth([(0, 0.88), (0.34, 0.8), (0.6, 0.58), (0.72, 0.25)]), 0.14, BONE)
        side.shape([(0.88, 0.36), (0.77, -0.02), (0.5, 0.22)], BONE)
    if not pen.halo:
        pen.oval(0, -0.84, 0.07, 0.07, CLOTH)


def wheel(pen: Pen) -> None:
    """A ship's wheel of eight spokes."""
    for degrees in range(0, 360, 45):
        spoke = pen.moved(degrees=degrees)
        spoke.stroke([(0, 0), (0.8, 0)], 0.09, BONE)
        spoke.stroke([(0.82, 0), (0.94, 0)], 0.13, DYE)
    pen.stroke(0.66 * CIRCLE, 0.13, BONE)


def wings(pen: Pen) -> None:
    """Wings spread wide, four feathers a side."""
    for side in pen.sides():
        for reach, degrees, ink in ((0.62, 38, SHADE), (0.76, 12, BONE), (0.88, -14, SHADE), (0.98, -38, BONE)):
            feather = side.moved(x=0.2, y=0.12, degrees=degrees)
            feather.blob([(0, -0.08), (0.6 * reach, -0.15), (reach, -0.05), (0.8 * reach, 0.09), (0, 0.1)], ink)


def arms(pen: Pen) -> None:
    """Six arms of an octopus, curling, with suckers."""
    for side in pen.sides():
        for path in (
            [(0.2, 0.2), (0.52, 0.1), (0.66, -0.25), (0.62, -0.6), (0.8, -0.78), (0.94, -0.6), (0.84, -0.48)],
            [(0.2, 0.3), (0.6, 0.3), (0.88, 0.05), (0.98, 0.25), (0.86, 0.42)],
            [(0.12, 0.4), (0.3, 0.74), (0.62, 0.68), (0.78, 0.84), (0.6, 0.98), (0.46, 0.9)],
        ):
            arm = smooth(path, steps=14)
            side.stroke(arm, 0.2, BONE, 0.06)
            if not side.halo:
                for x, y in arm[18:-16:9]:
                    side.oval(x, y, 0.04, 0.04, DYE)


def compass(pen: Pen) -> None:
    """A compass rose of eight points, each half in shade."""
    for offset, reach, waist in ((45, 0.72, 0.17), (0, 1.0, 0.2)):
        for degrees in range(offset, 360 + offset, 90):
            point = pen.moved(degrees=degrees)
            point.shape([(0, 0), (waist, -waist), (reach, 0)], BONE)
            point.shape([(0, 0), (waist, waist), (reach, 0)], DYE)


def bolts(pen: Pen) -> None:
    """Four bolts of lightning, from the head to the corners."""
    zigzag = [(0, -0.1), (0.5, -0.2), (0.6, 0.0), (0.92, -0.1), (1.24, 0.06), (0.78, 0.04), (0.84, 0.2),
              (0.42, 0.0), (0, 0.12)]
    for side in pen.sides():
        for degrees in (-42, 38):
            side.moved(degrees=degrees).shape(zigzag, DYE)


def hourglass(pen: Pen) -> None:
    """A tall hourglass, half empty."""
    for end in (pen, pen.moved(degrees=180)):
        end.blob([(-0.52, -0.86), (0.52, -0.86), (0.46, -0.5), (0.1, -0.04), (-0.1, -0.04), (-0.46, -0.5)], SHADE)
        end.stroke([(-0.64, -0.9), (0.64, -0.9)], 0.15, BONE)
    pen.blob([(-0.5, 0.84), (0.5, 0.84), (0.3, 0.56), (0, 0.45), (-0.3, 0.56)], DYE)
    for side in pen.sides():
        side.stroke([(0.58, -0.9), (0.58, 0.9)], 0.09, BONE)


# --- headgear, on a crown at y = -0.5 ---


def bandana(pen: Pen) -> None:
    """A spotted bandana, knotted at one side."""
    pen.blob([(0.4, -0.22), (0.62, -0.12), (0.72, 0.06), (0.56, 0.06), (0.44, -0.1)], DYE)
    pen.blob([(0.4, -0.24), (0.64, -0.34), (0.8, -0.26), (0.66, -0.18), (0.46, -0.16)], DYE)
    pen.blob([(-0.46, -0.16), (-0.36, -0.46), (0, -0.58), (0.36, -0.46), (0.46, -0.16), (0, -0.27)], DYE)
    if not pen.halo:
        for x, y in ((-0.28, -0.34), (-0.08, -0.44), (0.12, -0.37), (0.29, -0.32)):
            pen.oval(x, y, 0.04, 0.04, BONE)


def tricorne(pen: Pen) -> None:
    """A captain's hat with a laced brim."""
    pen.blob([(-0.7, -0.5), (-0.42, -0.56), (-0.2, -0.84), (0.05, -0.9), (0.28, -0.8), (0.42, -0.56), (0.7, -0.5),
              (0.42, -0.27), (0, -0.22), (-0.42, -0.27)], DYE)
    if not pen.halo:
        pen.stroke(smooth([(-0.6, -0.46), (-0.36, -0.34), (0, -0.31), (0.36, -0.34), (0.6, -0.46)]), 0.055, BONE)
        pen.oval(0, -0.58, 0.1, 0.1, BONE)


def stovepipe(pen: Pen) -> None:
    """A very tall hat."""
    pen.shape([(-0.3, -0.38), (-0.35, -1.0), (0.35, -1.0), (0.3, -0.38)], DYE)
    pen.stroke(smooth([(-0.56, -0.4), (0, -0.32), (0.56, -0.4)]), 0.1, DYE)
    if not pen.halo:
        pen.shape([(-0.305, -0.46), (-0.32, -0.6), (0.32, -0.6), (0.305, -0.46)], BONE)


def horns(pen: Pen) -> None:
    """A bull's horns."""
    for side in pen.sides():
        side.stroke(smooth([(0.2, -0.36), (0.46, -0.42), (0.57, -0.64), (0.46, -0.96)], steps=24), 0.2, BONE, 0.03)
        side.stroke([(0.31, -0.48), (0.35, -0.3)], 0.07, DYE)


def crown(pen: Pen) -> None:
    """A crown of five points."""
    pen.shape([(-0.34, -0.36), (-0.46, -0.84), (-0.24, -0.62), (-0.17, -0.92), (0, -0.64), (0.17, -0.92),
               (0.24, -0.62), (0.46, -0.84), (0.34, -0.36)], DYE)
    for x, y in ((-0.46, -0.86), (-0.17, -0.94), (0.17, -0.94), (0.46, -0.86)):
        pen.oval(x, y, 0.06, 0.06, BONE)


def candle(pen: Pen) -> None:
    """A candle stuck in its own wax."""
    pen.blob([(0, -1.2), (0.11, -0.98), (0, -0.84), (-0.11, -0.98)], DYE)
    pen.shape([(-0.13, -0.82), (0.13, -0.82), (0.13, -0.42), (-0.13, -0.42)], BONE)
    pen.blob([(-0.3, -0.34), (-0.22, -0.52), (0, -0.55), (0.22, -0.52), (0.3, -0.34), (0.2, -0.4), (0.12, -0.26),
              (0.02, -0.4), (-0.1, -0.3), (-0.18, -0.4)], SHADE)


def crescent(pen: Pen) -> None:
    """A crescent moon and a star above the head."""
    pen.blob([(0.14, -1.12), (-0.16, -1.08), (-0.3, -0.84), (-0.16, -0.6), (0.14, -0.56), (-0.06, -0.68),
              (-0.12, -0.84), (-0.06, -1.0)], DYE)
    pen.shape([(0.2, -0.96), (0.24, -0.87), (0.33, -0.83), (0.24, -0.79), (0.2, -0.7), (0.16, -0.79), (0.07, -0.83),
               (0.16, -0.87)], BONE)


# --- faces: eyes near y = 0, teeth near y = 0.35 ---


def patch(pen: Pen) -> None:
    """A patch over one eye."""
    pen.stroke(smooth([(-0.4, 0.0), (-0.2, -0.14), (0.1, -0.28), (0.3, -0.4)]), 0.07, DYE)
    pen.blob([(-0.36, -0.12), (-0.08, -0.22), (-0.03, 0.0), (-0.2, 0.15), (-0.36, 0.06)], DYE)


def moustache(pen: Pen) -> None:
    """A moustache with curled tips."""
    for side in pen.sides():
        side.blob([(0, 0.2), (0.16, 0.17), (0.36, 0.28), (0.54, 0.22), (0.6, 0.04), (0.68, 0.24), (0.54, 0.42),
                   (0.3, 0.44), (0, 0.28)], DYE)


def rose(pen: Pen) -> None:
    """A rose between the teeth."""
    pen.stroke(smooth([(-0.44, 0.3), (0, 0.38), (0.5, 0.32)]), 0.06, SHADE)
    pen.blob([(0.24, 0.36), (0.38, 0.46), (0.52, 0.46), (0.4, 0.34)], SHADE)
    for petal in range(0, 360, 72):
        pen.moved(-0.5, 0.28, degrees=petal).oval(0.11, 0, 0.12, 0.1, DYE)
    if not pen.halo:
        pen.stroke(smooth([(-0.44, 0.24), (-0.54, 0.2), (-0.58, 0.3), (-0.5, 0.36), (-0.44, 0.3)]), 0.03, CLOTH)


# fmt: on


@dataclass(frozen=True)
class Emblem:
    """A device behind a head, which is `sink` lower and `scale` times as large as usual."""

    skull: Element
    device: Element
    top: Element | None = None
    face: Element | None = None
    sink: float = 0.0
    scale: float = 1.0

    def draw(self, pen: Pen) -> None:
        """Draw from back to front, each element in a halo of bare cloth."""
        head = pen.moved(y=self.sink, scale=self.scale)
        for element, place in ((self.device, pen), (self.skull, head), (self.top, head), (self.face, head)):
            if element is not None:
                element(replace(place, halo=True))
                element(place)


EMBLEMS: dict[str, Emblem] = {
    "ashen-candles": Emblem(round_skull, bones, top=candle, sink=0.22, scale=0.95),
    "blind-gulls": Emblem(broad_skull, wings, face=patch),
    "brine-brides": Emblem(long_skull, arms, face=rose, sink=-0.15, scale=1.1),
    "cinder-bulls": Emblem(round_skull, bones, top=horns, sink=0.06, scale=0.95),
    "crowned-depths": Emblem(broad_skull, arms, top=crown, sink=0.08),
    "dread-barbers": Emblem(round_skull, swords, face=moustache, sink=-0.15, scale=0.9),
    "fog-admirals": Emblem(broad_skull, anchor, top=tricorne, sink=0.12, scale=0.9),
    "hollow-hours": Emblem(long_skull, hourglass, face=patch, scale=0.95),
    "iron-petals": Emblem(long_skull, swords, face=rose, sink=-0.2, scale=0.95),
    "lame-pilots": Emblem(round_skull, wheel, face=patch, scale=0.9),
    "low-moons": Emblem(long_skull, hooks, top=crescent, sink=0.05, scale=0.85),
    "north-thieves": Emblem(broad_skull, compass, top=bandana, sink=0.05, scale=0.9),
    "salt-clerks": Emblem(long_skull, wheel, top=stovepipe, sink=0.16, scale=0.95),
    "spotted-dogs": Emblem(round_skull, bones, top=bandana),
    "storm-heifers": Emblem(long_skull, bolts, top=horns, sink=-0.05, scale=0.9),
    "tinder-saints": Emblem(broad_skull, wings, top=candle, sink=0.22, scale=0.95),
    "velvet-hooks": Emblem(round_skull, hooks, top=tricorne, sink=-0.02, scale=0.85),
    "weather-uncles": Emblem(broad_skull, bolts, face=moustache, sink=-0.15, scale=0.9),
}


@lru_cache(maxsize=64)
def stencil(crew: str, size: int) -> Image.Image:
    """A crew's emblem as a size x size RGB image of ink coverage: red for BONE, green for DYE, blue for SHADE."""
    side = size * SUPERSAMPLING
    sheet = Image.new("RGB", (side, side), CLOTH)
    unit = side / 2.3  # the tallest headgear reaches a little beyond -1..1
    axes = np.array([[unit, 0.0, side / 2], [0.0, unit, side / 2]])  # (2, 3)
    EMBLEMS[crew].draw(Pen(ImageDraw.Draw(sheet), axes))
    return sheet.reduce(SUPERSAMPLING)
